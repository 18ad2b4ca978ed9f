//! Products for devices that run many invocations at once: several share a weight row, or a workgroup unpacks a tile
//! of weights into its memory for a tile of activations.
//!
//! The units of a row are cut into [`CHUNKS`] chunks of one length. Every kernel sums unit by unit within a chunk,
//! then chunk by chunk, whatever the other rows are: a row gives the same bits alone and in company.

use std::fmt::Write;

use super::packed::{GROUP, Packed};
use super::source::{add_floats, add_row_of_floats, add_unit, product, unpack, with_sizes};
use crate::exec::Sizes;

/// Parts of a row that are summed separately.
const CHUNKS: usize = 16;
/// Weight rows of a workgroup that shares each of them.
pub(super) const SHARED_ROWS: usize = 16;
/// Rows of activations of a tile; its weight rows are a group.
pub(super) const TILE_ROWS: usize = 32;
/// Invocations of a workgroup, and most bytes of workgroup memory of any of these kernels.
pub(super) const INVOCATIONS: usize = 256;
pub(super) const MEMORY: usize = 16 << 10;
/// Units of a tile in workgroup memory at a time.
const QUANT_UNITS: usize = 2;
const FLOAT_UNITS: usize = 8;

/// Beginning of both kernels.
fn begin(packed: Packed) -> String {
    format!(
        "{}const GROUP = {GROUP}u;
         // Units of a chunk.
         fn chunk_length() -> u32 {{ return (p.a + {}u) / {CHUNKS}u; }}\n",
        product(packed, "vec4<u32>"),
        CHUNKS - 1
    )
}

/// `out[r][offset + n] = w[n] . x[r]`: one invocation for each chunk of a weight row, `rows` rows of activations for
/// each unpacked unit. Parameters: a units of a row, b weight rows, c width of out, d offset, e whether to add.
pub(super) fn matmul(sizes: &Sizes, packed: Packed, rows: usize) -> String {
    let (_, words) = packed.unit();
    let mut s = begin(packed);
    // Writing to a string does not fail.
    let mut line = |text: std::fmt::Arguments<'_>| {
        let _ = s.write_fmt(text);
        s.push('\n');
    };
    line(format_args!(
        "var<workgroup> parts: array<f32, {}>;
         @compute @workgroup_size({INVOCATIONS})
         fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {{
         let n = group.x * {SHARED_ROWS}u + lane % {SHARED_ROWS}u;
         let first = group.y * {rows}u;
         let begin = min(lane / {SHARED_ROWS}u * chunk_length(), p.a);
         let end = min(begin + chunk_length(), p.a);",
        rows * INVOCATIONS
    ));
    for t in 0..rows {
        // Rows past the end repeat the last one; their results are not written.
        line(format_args!("let row{t} = min(first + {t}u, p.rows - 1u) * p.a; var sum{t} = 0.0;"));
    }
    line(format_args!(
        "var at = (n / GROUP * p.a + begin) * {words}u * GROUP + n % GROUP;
         for (var unit = begin; unit < end; unit++) {{"
    ));
    unpack(packed, &mut line);
    for t in 0..rows {
        if !packed.is_quantized() {
            line(format_args!("{}", add_row_of_floats(t)));
            continue;
        }
        line(format_args!(
            "{{ let start = row{t} + unit; let xs = scales[start]; let xa = quants[2u * start]; let xb = quants[2u * start + 1u];
             let low = dot4I8Packed(a0, xa.x) + dot4I8Packed(a1, xa.y) + dot4I8Packed(a2, xa.z) + dot4I8Packed(a3, xa.w);
             let high = dot4I8Packed(a4, xb.x) + dot4I8Packed(a5, xb.y) + dot4I8Packed(a6, xb.z) + dot4I8Packed(a7, xb.w);
             {} }}",
            add_unit(packed, &format!("sum{t}"), "scale", "xs")
        ));
    }
    line(format_args!("at += {words}u * GROUP;\n}}"));
    for t in 0..rows {
        line(format_args!("parts[{}u + lane] = sum{t};", t * INVOCATIONS));
    }
    line(format_args!(
        "workgroupBarrier();
         if (lane < {}u) {{
             let t = lane / {SHARED_ROWS}u;
             let r = lane % {SHARED_ROWS}u;
             var total = 0.0;
             for (var chunk = 0u; chunk < {CHUNKS}u; chunk++) {{
                 total += parts[t * {INVOCATIONS}u + chunk * {SHARED_ROWS}u + r];
             }}
             put(first + t, group.x * {SHARED_ROWS}u + r, total);
         }} }}",
        rows * SHARED_ROWS
    ));
    with_sizes(sizes, &s)
}

/// As [`matmul`], for a tile of a group of weight rows and [`TILE_ROWS`] rows of activations; an invocation has four
/// by two of its sums.
pub(super) fn tile(sizes: &Sizes, packed: Packed) -> String {
    let units = if packed.is_quantized() { QUANT_UNITS } else { FLOAT_UNITS };
    let mut s = begin(packed);
    s.push_str(&if packed.is_quantized() { quants_of_a_tile(packed) } else { floats_of_a_tile(packed) });
    let sums = |name: &str, value: &str| -> String {
        (0..8).fold(String::new(), |s, n| s + &format!("{name}{}{} {value};\n", n / 4, n % 4))
    };
    let flush = (0..8).fold(String::new(), |s, n| {
        let (i, j) = (n / 4, n % 4);
        s + &format!("total{i}{j} += sum{i}{j}; sum{i}{j} = 0.0;\n")
    });
    let put = (0..8).fold(String::new(), |s, n| {
        let (i, j) = (n / 4, n % 4);
        s + &format!("put(first + y + {}u, group.x * GROUP + x_of_tile + {}u, total{i}{j});\n", 16 * i, 16 * j)
    });
    let _ = write!(
        s,
        "@compute @workgroup_size({INVOCATIONS})
         fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {{
         let first = group.y * {TILE_ROWS}u;
         let x_of_tile = lane % 16u;
         let y = lane / 16u;
         var end_of_chunk = chunk_length();
         {}{}
         for (var k = 0u; k < p.a; k += {units}u) {{
             bring(group.x, first, k, lane);
             workgroupBarrier();
             for (var u = 0u; u < {units}u; u++) {{
                 {}
                 if (k + u + 1u == end_of_chunk) {{
                     {flush}
                     end_of_chunk += chunk_length();
                 }}
             }}
             workgroupBarrier();
         }}
         {flush}{put} }}\n",
        sums("var sum", "= 0.0"),
        sums("var total", "= 0.0"),
        products_of_a_unit(packed),
    );
    with_sizes(sizes, &s)
}

/// Products of unit `u` of the tiles in workgroup memory.
fn products_of_a_unit(packed: Packed) -> String {
    let mut s = String::new();
    for j in 0..4 {
        s += &if packed.is_quantized() {
            format!(
                "let wa{j} = ws[2u * u * GROUP + x_of_tile + {0}u]; let wb{j} = ws[(2u * u + 1u) * GROUP + x_of_tile + {0}u];
                 let scale{j} = wscales[u * GROUP + x_of_tile + {0}u];\n",
                16 * j
            )
        } else {
            format!("let w{j} = ws[u * GROUP + x_of_tile + {}u];\n", 16 * j)
        };
    }
    for i in 0..2 {
        s += &if packed.is_quantized() {
            format!(
                "let xa{i} = xs[2u * u * {TILE_ROWS}u + y + {0}u]; let xb{i} = xs[(2u * u + 1u) * {TILE_ROWS}u + y + {0}u];
                 let by{i} = xscales[u * {TILE_ROWS}u + y + {0}u];\n",
                16 * i
            )
        } else {
            format!("let x{i} = xs[u * {TILE_ROWS}u + y + {}u];\n", 16 * i)
        };
    }
    for (i, j) in (0..8).map(|n| (n / 4, n % 4)) {
        let sum = format!("sum{i}{j}");
        if !packed.is_quantized() {
            s += &add_floats(&sum, &format!("w{j}"), &format!("x{i}"));
            s.push('\n');
            continue;
        }
        let half = |w: &str, x: &str| {
            ["x", "y", "z", "w"].map(|c| format!("dot4I8Packed({w}{j}.{c}, {x}{i}.{c})")).join(" + ")
        };
        s += &format!(
            "{{ let low = {}; let high = {};\n{} }}\n",
            half("wa", "xa"),
            half("wb", "xb"),
            add_unit(packed, &sum, &format!("scale{j}"), &format!("by{i}"))
        );
    }
    s
}

/// Loads two units of every row of a tile into workgroup memory. Units past the end have scale 0.
fn quants_of_a_tile(packed: Packed) -> String {
    let (_, words) = packed.unit();
    // Half of a unit: four words of four values each.
    let half = match packed {
        Packed::W4 | Packed::W5 | Packed::W6 => {
            "let nibbles = vec4<u32>(w[at + GROUP], w[at + 2u * GROUP], w[at + 3u * GROUP], w[at + 4u * GROUP]);
             let low = (nibbles >> vec4<u32>(4u * half)) & vec4<u32>(0x0f0f0f0fu);"
        }
        _ => "let start = at + (1u + 4u * half) * GROUP;",
    };
    let whole = match packed {
        Packed::W4 => "return low;",
        Packed::W5 => {
            "let beyond = vec4<u32>(w[at + 5u * GROUP]) >> (vec4<u32>(0u, 1u, 2u, 3u) + vec4<u32>(4u * half));
             return low | ((beyond & vec4<u32>(0x01010101u)) << vec4<u32>(4u));"
        }
        // As in `source::unpack`.
        Packed::W6 => {
            "let beyond = vec4<u32>(w[at + (5u + half) * GROUP]) >> vec4<u32>(0u, 2u, 4u, 6u);
             let bits = low | ((beyond & vec4<u32>(0x03030303u)) << vec4<u32>(4u));
             return ((bits | vec4<u32>(0x80808080u)) - vec4<u32>(0x20202020u)) ^ vec4<u32>(0x80808080u);"
        }
        _ => "return vec4<u32>(w[start], w[start + GROUP], w[start + 2u * GROUP], w[start + 3u * GROUP]);",
    };
    format!(
        "var<workgroup> ws: array<vec4<u32>, {}>; // unit, half, weight row
         var<workgroup> wscales: array<vec2<f32>, {}>;
         var<workgroup> xs: array<vec4<u32>, {}>; // unit, half, row
         var<workgroup> xscales: array<vec2<f32>, {}>;
         fn half_of(at: u32, half: u32) -> vec4<u32> {{ {half} {whole} }}
         fn bring(group: u32, first: u32, k: u32, lane: u32) {{
             let half = lane / GROUP % 2u;
             let which = lane / (2u * GROUP);
             let weight_row = lane % GROUP;
             var quant = vec4<u32>(0u);
             var scale = vec2<f32>(0.0);
             if (k + which < p.a) {{
                 let at = (group * p.a + k + which) * {words}u * GROUP + weight_row;
                 quant = half_of(at, half);
                 scale = unpack2x16float(w[at]);
             }}
             ws[(2u * which + half) * GROUP + weight_row] = quant;
             if (half == 0u) {{
                 wscales[which * GROUP + weight_row] = scale;
             }}
             // Rows past the end repeat the last one.
             if (lane < 4u * {TILE_ROWS}u) {{
                 let row = min(first + lane / 4u, p.rows - 1u);
                 let unit = min(k + lane % 4u / 2u, p.a - 1u);
                 xs[lane % 4u * {TILE_ROWS}u + lane / 4u] = quants[2u * (row * p.a + unit) + lane % 2u];
             }} else if (lane < 6u * {TILE_ROWS}u) {{
                 let mine = lane - 4u * {TILE_ROWS}u;
                 let row = min(first + mine / 2u, p.rows - 1u);
                 let unit = min(k + mine % 2u, p.a - 1u);
                 xscales[mine % 2u * {TILE_ROWS}u + mine / 2u] = scales[row * p.a + unit];
             }}
         }}\n",
        2 * QUANT_UNITS * GROUP,
        QUANT_UNITS * GROUP,
        2 * QUANT_UNITS * TILE_ROWS,
        QUANT_UNITS * TILE_ROWS,
    )
}

/// Loads eight units of every row of a tile into workgroup memory. Weights past the end are 0.
fn floats_of_a_tile(packed: Packed) -> String {
    let (_, words) = packed.unit();
    let mut unit = String::new();
    unpack(packed, &mut |text: std::fmt::Arguments<'_>| {
        let _ = unit.write_fmt(text);
    });
    format!(
        "var<workgroup> ws: array<vec4<f32>, {}>; // unit, weight row
         var<workgroup> xs: array<vec4<f32>, {}>; // unit, row
         fn unit_of(at: u32) -> vec4<f32> {{ {unit} return weights; }}
         fn bring(group: u32, first: u32, k: u32, lane: u32) {{
             let weight_row = lane % GROUP;
             for (var which = lane / GROUP; which < {FLOAT_UNITS}u; which += 4u) {{
                 var values = vec4<f32>(0.0);
                 if (k + which < p.a) {{
                     values = unit_of((group * p.a + k + which) * {words}u * GROUP + weight_row);
                 }}
                 ws[which * GROUP + weight_row] = values;
             }}
             // Rows past the end repeat the last one.
             let row = min(first + lane / {FLOAT_UNITS}u, p.rows - 1u);
             let unit = min(k + lane % {FLOAT_UNITS}u, p.a - 1u);
             xs[lane % {FLOAT_UNITS}u * {TILE_ROWS}u + lane / {FLOAT_UNITS}u] = x[row * p.a + unit];
         }}\n",
        FLOAT_UNITS * GROUP,
        FLOAT_UNITS * TILE_ROWS,
    )
}
