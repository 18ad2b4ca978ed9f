//! Programmable reverse proxy and inference gateway that spills into a model of its own
