// out[r] = table[index of r] * scale, or added to it. One invocation for each value. a: columns, b: twice the
// position of the index in `rows`, plus one to add, c: scale as bits, d: first row of this part of the table, e:
// number of rows.
@group(0) @binding(0) var<storage, read> table: array<u32>;
@group(0) @binding(1) var<storage, read> rows: array<vec4<u32>>; // token, position, slot, type
@group(0) @binding(2) var<storage, read_write> out: array<f32>;

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    let column = id.x;
    var indices = rows[id.y];
    let row = indices[p.b / 2u] - p.d; // far past the end where it lies in an earlier part
    if (column >= p.a || row >= p.e) {
        return;
    }
    let at = id.y * p.a + column;
    let value = weight(row, column) * bitcast<f32>(p.c);
    if (p.b % 2u == 1u) {
        out[at] += value;
    } else {
        out[at] = value;
    }
}
