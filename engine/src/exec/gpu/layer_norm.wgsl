// out[r] = (x[r] - mean(x[r])) / sqrt(variance(x[r]) + eps) * weight + bias. One workgroup a row. a: width, b: eps as bits.
@group(0) @binding(0) var<storage, read> x: array<f32>;
@group(0) @binding(1) var<storage, read> w: array<f32>;
@group(0) @binding(2) var<storage, read> bias: array<f32>;
@group(0) @binding(3) var<storage, read_write> out: array<f32>;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let base = group.x * p.a;
    var sum = 0.0;
    for (var c = lane; c < p.a; c += 64u) {
        sum += x[base + c];
    }
    let mean = total(sum, lane) / f32(p.a);
    sum = 0.0;
    for (var c = lane; c < p.a; c += 64u) {
        let v = x[base + c] - mean;
        sum += v * v;
    }
    let scale = inverseSqrt(total(sum, lane) / f32(p.a) + bitcast<f32>(p.b));
    for (var c = lane; c < p.a; c += 64u) {
        out[base + c] = (x[base + c] - mean) * scale * w[c] + bias[c];
    }
}
