//! Language models inside the process, on wgpu
