// out[r] = table[token of r]. One invocation a value. a: columns.
@group(0) @binding(0) var<storage, read> table: array<u32>;
@group(0) @binding(1) var<storage, read> rows: array<vec4<u32>>;
@group(0) @binding(2) var<storage, read_write> out: array<f32>;

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    let column = id.x;
    if (column >= p.a) {
        return;
    }
    out[id.y * p.a + column] = weight(rows[id.y].x, column);
}
