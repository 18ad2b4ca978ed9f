// out[r][offset + n] = w[n] . x[r], f32 weights. One invocation a weight row. a: columns, b: weight rows,
// c: width of out, d: offset, e: whether it is added.
@group(0) @binding(0) var<storage, read> w: array<f32>;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read_write> out: array<f32>;

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    if (id.x >= p.b) {
        return;
    }
    var sum = 0.0;
    for (var k = 0u; k < p.a; k++) {
        sum += w[id.x * p.a + k] * x[id.y * p.a + k];
    }
    let at = id.y * p.c + p.d + id.x;
    out[at] = select(sum, out[at] + sum, p.e != 0u);
}
