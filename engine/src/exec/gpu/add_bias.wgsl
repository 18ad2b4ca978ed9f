// out[r] += bias. One invocation a value. a: width.
@group(0) @binding(0) var<storage, read> bias: array<f32>;
@group(0) @binding(1) var<storage, read_write> out: array<f32>;

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    if (id.x < p.a) {
        out[id.y * p.a + id.x] += bias[id.x];
    }
}
