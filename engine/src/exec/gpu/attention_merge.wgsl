// Answer of attention from the partial results of each stretch of positions, joined as `attention.wgsl` does. One
// workgroup for each head of a row. b: positions of a window, c: stretches that had workgroups.
@group(0) @binding(0) var<storage, read> gathered: array<vec2<f32>>;
@group(0) @binding(1) var<storage, read> rows: array<vec4<u32>>;
@group(0) @binding(2) var<storage, read_write> out: array<vec2<f32>>;

const WORDS = HEAD_DIM / 2u;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let count = min(rows[group.y].y + 1u, p.b);
    let stretches = (count + STRETCH - 1u) / STRETCH;
    for (var w = lane; w < WORDS; w += 64u) {
        var most = LEAST;
        var total = 0.0;
        var sum = vec2<f32>(0.0);
        for (var stretch = 0u; stretch < stretches; stretch++) {
            let at = ((group.y * HEADS + group.x) * p.c + stretch) * (WORDS + 1u);
            let here = gathered[at + WORDS];
            let joined = join(most, total, here.x, here.y);
            most = joined.most;
            total = joined.total;
            sum = fma(sum, vec2<f32>(joined.keep), gathered[at + w] * joined.take);
        }
        out[(group.y * HEADS + group.x) * WORDS + w] = sum / total;
    }
}
