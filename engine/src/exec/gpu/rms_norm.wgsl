// out[r] = x[r] / sqrt(mean(x[r]^2) + eps) * weight. One workgroup a row. a: width, b: eps as bits.
@group(0) @binding(0) var<storage, read> x: array<f32>;
@group(0) @binding(1) var<storage, read> w: array<f32>;
@group(0) @binding(2) var<storage, read_write> out: array<f32>;

var<workgroup> sums: array<f32, 64>;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let base = group.x * p.a;
    var sum = 0.0;
    for (var c = lane; c < p.a; c += 64u) {
        let v = x[base + c];
        sum += v * v;
    }
    sums[lane] = sum;
    workgroupBarrier();
    // The order of this sum does not depend on the batch.
    for (var half = 32u; half > 0u; half /= 2u) {
        if (lane < half) {
            sums[lane] += sums[lane + half];
        }
        workgroupBarrier();
    }
    let scale = inverseSqrt(sums[0] / f32(p.a) + bitcast<f32>(p.b));
    for (var c = lane; c < p.a; c += 64u) {
        out[base + c] = x[base + c] * scale * w[c];
    }
}
