// Shared by all kernels: sizes of the model as constants, and the rows of a step. Constants in capitals are put in
// front of this text when a kernel is compiled.

struct Params {
    rows: u32,    // rows of the step, or picked rows
    a: u32,
    b: u32,
    c: u32,
    d: u32,
    e: u32,
}
var<immediate> p: Params;
