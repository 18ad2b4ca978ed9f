// out[i] = mean of the rows of x of the sequence of row picks[i]. One invocation a value. a: width.
@group(0) @binding(0) var<storage, read> x: array<f32>;
@group(0) @binding(1) var<storage, read> picks: array<u32>;
@group(0) @binding(2) var<storage, read> spans: array<vec2<u32>>;
@group(0) @binding(3) var<storage, read_write> out: array<f32>;

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    if (id.x >= p.a) {
        return;
    }
    let span = spans[picks[id.y]];
    var sum = 0.0;
    for (var r = span.x; r < span.y; r++) {
        sum += x[r * p.a + id.x];
    }
    out[id.y * p.a + id.x] = sum / f32(span.y - span.x);
}
