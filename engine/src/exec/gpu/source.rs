//! WGSL of each kernel: the files beside this one with the model's sizes in front, and code that depends on the
//! packing of weights. That code is generated for each packing and number of rows that share an unpacked weight.

use std::fmt::Write;

use super::STRETCH;
use super::packed::{GROUP, Packed};
use crate::exec::{Function, PAGE, Sizes};

/// A kernel from files, with the model's sizes.
pub(super) fn with_sizes(sizes: &Sizes, body: &str) -> String {
    format!(
        "const PAGE = {PAGE}u;\nconst PAGES_PER_SLOT = {}u;\nconst HEADS = {}u;\nconst KV_HEADS = {}u;\n\
         const HEAD_DIM = {}u;\n{}\n{body}",
        sizes.pages_per_slot(),
        sizes.heads,
        sizes.kv_heads,
        sizes.head_dim,
        include_str!("common.wgsl"),
    )
}

/// Attention over the positions given by the functions in `looked_at`, stretch by stretch, or each stretch apart.
pub(super) fn attention(sizes: &Sizes, looked_at: &str, apart: bool) -> String {
    let apart = format!("const APART = {apart};\n");
    with_sizes(sizes, &[&stretches(), &apart, looked_at, include_str!("attention.wgsl")].concat())
}

/// Merge after attention by stretches.
pub(super) fn attention_merge(sizes: &Sizes) -> String {
    with_sizes(sizes, &[&stretches(), include_str!("attention_merge.wgsl")].concat())
}

/// Common part of both: stretches, and the join of one with those before it.
fn stretches() -> String {
    format!("const STRETCH = {STRETCH}u;\n{}", include_str!("attention_join.wgsl"))
}

/// `fn apply(x: f32) -> f32`. Arguments of `exp` and `tanh` are bounded, since some devices give no number beyond.
pub(super) fn function(function: Function) -> &'static str {
    match function {
        Function::Silu => "fn apply(x: f32) -> f32 { return x / (1.0 + exp(min(-x, 80.0))); }\n",
        // Φ by the error function to 1.5e-7 (Abramowitz and Stegun, formula 7.1.26).
        Function::Gelu => {
            "fn apply(x: f32) -> f32 {
                let z = min(abs(x) * 0.70710678, 9.0);
                let t = 1.0 / (1.0 + 0.3275911 * z);
                let series = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))));
                return 0.5 * x * (1.0 + sign(x) * (1.0 - series * exp(-z * z)));
            }\n"
        }
        Function::GeluTanh => {
            "fn apply(x: f32) -> f32 {
                let y = 0.7978845608 * (x + 0.044715 * x * x * x);
                return 0.5 * x * (1.0 + tanh(clamp(y, -15.0, 15.0)));
            }\n"
        }
        Function::Tanh => "fn apply(x: f32) -> f32 { return tanh(clamp(x, -15.0, 15.0)); }\n",
        Function::Relu => "fn apply(x: f32) -> f32 { return max(x, 0.0); }\n",
    }
}

/// The embedding for tables of a packing.
pub(super) fn embed(sizes: &Sizes, packed: Packed) -> String {
    let (values, words) = packed.unit();
    let scaled = match packed {
        Packed::F32 => "return bitcast<f32>(table[at + place * GROUP]);",
        Packed::F16 => "return unpack2x16float(table[at + place / 2u * GROUP])[place % 2u];",
        Packed::BF16 => {
            "return bitcast<f32>((table[at + place / 2u * GROUP] << (16u * (1u - place % 2u))) & 0xffff0000u);"
        }
        Packed::W8 => "return f32(unpack4xI8(table[at + (1u + place / 4u) * GROUP])[place % 4u]) * scale.x;",
        Packed::W4 => "return f32(low) * scale.x + scale.y;",
        Packed::W5 => {
            "let high = (table[at + 5u * GROUP] >> (place % 4u * 8u + place / 4u)) & 1u;
             return f32(low | (high << 4u)) * scale.x + scale.y;"
        }
        Packed::W6 => {
            "let high = (table[at + (5u + place / 16u) * GROUP] >> (place % 4u * 8u + place / 4u % 4u * 2u)) & 3u;
             return (f32(low | (high << 4u)) - 32.0) * select(scale.x, scale.y, place >= 16u);"
        }
    };
    let unpack = if packed.is_quantized() { "let scale = unpack2x16float(table[at]);" } else { "" };
    let low = match packed {
        Packed::W4 | Packed::W5 | Packed::W6 => {
            "let low = (table[at + (1u + place / 4u % 4u) * GROUP] >> (place % 4u * 8u + place / 16u * 4u)) & 15u;"
        }
        _ => "",
    };
    let body = format!(
        "const GROUP = {GROUP}u;
         fn weight(row: u32, column: u32) -> f32 {{
         let at = (row / GROUP * (p.a / {values}u) + column / {values}u) * {words}u * GROUP + row % GROUP;
         let place = column % {values}u;
         {unpack}\n{low}\n{scaled}\n}}\n{}",
        include_str!("embed.wgsl")
    );
    with_sizes(sizes, &body)
}

/// Bindings of a product, with rounded activations as `quants`, and the function that stores a sum: parameters as in
/// [`matmul`].
pub(super) fn product(packed: Packed, quants: &str) -> String {
    let bound = if packed.is_quantized() {
        format!(
            "@group(0) @binding(1) var<storage, read> quants: array<{quants}>;
             @group(0) @binding(2) var<storage, read> scales: array<vec2<f32>>;
             @group(0) @binding(3) var<storage, read_write> out: array<f32>;"
        )
    } else {
        "@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>;
         @group(0) @binding(2) var<storage, read_write> out: array<f32>;"
            .to_owned()
    };
    format!(
        "@group(0) @binding(0) var<storage, read> w: array<u32>;
         {bound}
         fn put(row: u32, n: u32, sum: f32) {{
             if (row < p.rows && n < p.b) {{
                 let to = row * p.c + p.d + n;
                 if (p.e != 0u) {{ out[to] += sum; }} else {{ out[to] = sum; }}
             }}
         }}\n"
    )
}

/// `out[r][offset + n] = w[n] . x[r]`: one invocation for each weight row, `tile` rows of activations for each
/// unpacked unit. Parameters: a units of a row, b weight rows, c width of out, d offset, e whether to add.
///
/// With `subgroups`, eight lanes load the eight words of a block of rounded activations at once and exchange them.
/// This pays where a driver turns a load from one address in all lanes into a loop.
pub(super) fn matmul(sizes: &Sizes, packed: Packed, tile: usize, subgroups: bool) -> String {
    let (_, words) = packed.unit();
    let subgroups = subgroups && packed.is_quantized();
    let mut s = product(packed, "u32");
    // Writing to a string does not fail.
    let mut line = |text: std::fmt::Arguments<'_>| {
        let _ = s.write_fmt(text);
        s.push('\n');
    };
    line(format_args!(
        "@compute @workgroup_size({GROUP})
         fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32{}) {{
         let n = group.x * {GROUP}u + lane;
         let first = group.y * {tile}u;",
        if subgroups { ", @builtin(subgroup_invocation_id) member: u32" } else { "" },
    ));
    for t in 0..tile {
        // Rows past the end repeat the last one; their results are not written.
        line(format_args!("let row{t} = min(first + {t}u, p.rows - 1u) * p.a; var sum{t} = 0.0;"));
    }
    line(format_args!(
        "var at = group.x * p.a * {}u + lane;\nfor (var unit = 0u; unit < p.a; unit++) {{",
        words * GROUP
    ));
    unpack(packed, &mut line);
    for t in 0..tile {
        if !packed.is_quantized() {
            line(format_args!("{}", add_row_of_floats(t)));
            continue;
        }
        line(format_args!("{{ let start = row{t} + unit; let xs = scales[start]; var low = 0; var high = 0;"));
        if subgroups {
            line(format_args!("let mine = quants[start * 8u + (member & 7u)];"));
        }
        for j in 0..8 {
            let x =
                if subgroups { format!("subgroupBroadcast(mine, {j}u)") } else { format!("quants[start * 8u + {j}u]") };
            line(format_args!("{} += dot4I8Packed(a{j}, {x});", if j < 4 { "low" } else { "high" }));
        }
        line(format_args!("{} }}", add_unit(packed, &format!("sum{t}"), "scale", "xs")));
    }
    line(format_args!("at += {}u;\n}}", words * GROUP));
    for t in 0..tile {
        line(format_args!("put(first + {t}u, n, sum{t});"));
    }
    line(format_args!("}}"));
    with_sizes(sizes, &s)
}

/// Adds the products of a unit to `sum`: `low` and `high` are the integer sums of its halves, `weight` and `x` the
/// scales. Additions are written as `fma`, so that no compiler rounds them in one kernel and not in another.
pub(super) fn add_unit(packed: Packed, sum: &str, weight: &str, x: &str) -> String {
    match packed {
        Packed::W4 | Packed::W5 => {
            format!("{sum} = fma({weight}.x * {x}.x, f32(low + high), {sum}); {sum} = fma({weight}.y, {x}.y, {sum});")
        }
        Packed::W6 => format!(
            "{sum} = fma({weight}.x * {x}.x, f32(low), {sum}); {sum} = fma({weight}.y * {x}.x, f32(high), {sum});"
        ),
        _ => format!("{sum} = fma({weight}.x * {x}.x, f32(low + high), {sum});"),
    }
}

/// Adds the dot product of two units of floats to `sum`.
pub(super) fn add_floats(sum: &str, weights: &str, x: &str) -> String {
    ["x", "y", "z", "w"].map(|c| format!("{sum} = fma({weights}.{c}, {x}.{c}, {sum});")).join(" ")
}

/// Adds the product of the unit `weights` and row `t` of activations to the row's sum.
pub(super) fn add_row_of_floats(t: usize) -> String {
    let add = add_floats(&format!("sum{t}"), "weights", &format!("x{t}"));
    format!("{{ let x{t} = x[row{t} + unit]; {add} }}")
}

/// Unpacks the unit at `at`: floats to `weights`, integers to four bytes each in `a0` to `a7` beside `scale`.
pub(super) fn unpack(packed: Packed, line: &mut impl FnMut(std::fmt::Arguments<'_>)) {
    let word = |n: usize| format!("w[at + {}u]", n * GROUP);
    match packed {
        Packed::F32 => line(format_args!(
            "let weights = bitcast<vec4<f32>>(vec4<u32>({}, {}, {}, {}));",
            word(0),
            word(1),
            word(2),
            word(3)
        )),
        Packed::F16 => {
            line(format_args!("let weights = vec4<f32>(unpack2x16float({}), unpack2x16float({}));", word(0), word(1)))
        }
        Packed::BF16 => line(format_args!(
            "let f0 = {}; let f1 = {};
             let weights = bitcast<vec4<f32>>(vec4<u32>(f0 << 16u, f0 & 0xffff0000u, f1 << 16u, f1 & 0xffff0000u));",
            word(0),
            word(1)
        )),
        _ => line(format_args!("let scale = unpack2x16float({});", word(0))),
    }
    match packed {
        Packed::F32 | Packed::F16 | Packed::BF16 => {}
        Packed::W8 => (0..8).for_each(|j| line(format_args!("let a{j} = {};", word(j + 1)))),
        Packed::W4 | Packed::W5 | Packed::W6 => {
            if packed == Packed::W5 {
                line(format_args!("let beyond = {};", word(5)));
            } else if packed == Packed::W6 {
                line(format_args!("let beyond0 = {}; let beyond1 = {};", word(5), word(6)));
            }
            for j in 0..8 {
                if j < 4 {
                    line(format_args!("let q{j} = {};", word(j + 1)));
                }
                let low =
                    if j < 4 { format!("q{j} & 0x0f0f0f0fu") } else { format!("(q{} >> 4u) & 0x0f0f0f0fu", j - 4) };
                match packed {
                    Packed::W5 => line(format_args!("let a{j} = ({low}) | (((beyond >> {j}u) & 0x01010101u) << 4u);")),
                    // Six bits less 32 in each byte: the top bit is set before the subtraction, so that no byte
                    // borrows, and flipped after it.
                    Packed::W6 => line(format_args!(
                        "let a{j} = ((({low}) | (((beyond{} >> {}u) & 0x03030303u) << 4u) | 0x80808080u) - 0x20202020u) ^ 0x80808080u;",
                        j / 4,
                        j % 4 * 2
                    )),
                    _ => line(format_args!("let a{j} = {low};")),
                }
            }
        }
    }
}
