// x[r] = apply(x[r]). One invocation a value. a: width.
@group(0) @binding(0) var<storage, read_write> x: array<f32>;

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    if (id.x < p.a) {
        let at = id.y * p.a + id.x;
        x[at] = apply(x[at]);
    }
}
