// out[r] = apply(left half of x[r]) * right half. One invocation a value. a: width of the answer.
@group(0) @binding(0) var<storage, read> x: array<f32>;
@group(0) @binding(1) var<storage, read_write> out: array<f32>;

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    if (id.x >= p.a) {
        return;
    }
    let start = id.y * 2u * p.a + id.x;
    out[id.y * p.a + id.x] = apply(x[start]) * x[start + p.a];
}
