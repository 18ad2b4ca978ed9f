// Rounds activations to 8 bits with one scale for each block of 32. One invocation a block. a: blocks of a row.
@group(0) @binding(0) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read_write> quants: array<u32>;
@group(0) @binding(2) var<storage, read_write> scales: array<vec2<f32>>; // scale, scale * sum

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    let block = id.x;
    if (block >= p.rows * p.a) {
        return;
    }
    var most = 0.0;
    for (var i = 0u; i < 8u; i++) {
        let v = abs(x[block * 8u + i]);
        most = max(most, max(max(v.x, v.y), max(v.z, v.w)));
    }
    // Numbers so small that the inverse would be infinite are rounded to 0: below the least normal number.
    let exact = most / 127.0;
    let scale = select(0.0, exact, exact >= 1.1754944e-38);
    let inverse = select(0.0, 1.0 / scale, scale > 0.0);
    var sum = vec4<i32>(0);
    for (var i = 0u; i < 8u; i++) {
        let q = vec4<i32>(round(x[block * 8u + i] * inverse));
        sum += q;
        quants[block * 8u + i] = pack4xI8(q);
    }
    scales[block] = vec2<f32>(scale, scale * f32(sum.x + sum.y + sum.z + sum.w));
}
