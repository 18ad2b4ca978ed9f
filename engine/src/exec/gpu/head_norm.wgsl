// Divides each query and key of a row by the root of its mean square, times the weights of queries or keys. One
// workgroup for each head of a row. a: eps as bits.
@group(0) @binding(0) var<storage, read_write> qkv: array<f32>;
@group(0) @binding(1) var<storage, read> query: array<f32>;
@group(0) @binding(2) var<storage, read> key: array<f32>;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let base = (group.y * (HEADS + 2u * KV_HEADS) + group.x) * HEAD_DIM;
    var sum = 0.0;
    for (var c = lane; c < HEAD_DIM; c += 64u) {
        let v = qkv[base + c];
        sum += v * v;
    }
    let scale = inverseSqrt(total(sum, lane) / f32(HEAD_DIM) + bitcast<f32>(p.a));
    for (var c = lane; c < HEAD_DIM; c += 64u) {
        var w = 0.0;
        if (group.x < HEADS) {
            w = query[c];
        } else {
            w = key[c];
        }
        qkv[base + c] *= scale * w;
    }
}
