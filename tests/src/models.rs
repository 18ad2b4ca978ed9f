//! Model files derived from others.

use std::ops::Range;
use std::path::Path;

/// Qwen's template, shortened, for the demo model, whose own knows no tools.
pub const TEMPLATE_WITH_TOOLS: &str = "{%- if tools %}<|im_start|>system\nYou may call these tools:{%- for tool in tools %}\n{{ tool | tojson }}\
    {%- endfor %}\nA call is JSON in <tool_call></tool_call>.<|im_end|>\n{%- endif %}{%- for message in messages %}\
    <|im_start|>{{ message.role }}\n{{ message.content }}{%- for tool_call in message.tool_calls %}\
    {%- set tool_call = tool_call.function %}\n<tool_call>\n{\"name\": \"{{ tool_call.name }}\", \"arguments\": \
    {{ tool_call.arguments | tojson }}}\n</tool_call>{%- endfor %}<|im_end|>\n{%- endfor %}<|im_start|>assistant\n";

/// Reads an eight-byte number.
fn number(file: &[u8], at: usize) -> usize {
    usize::try_from(u64::from_le_bytes(file[at..at + 8].try_into().unwrap())).unwrap()
}

/// End of a GGUF value of this type that begins at `at`.
fn end(file: &[u8], kind: u32, at: usize) -> usize {
    match kind {
        0 | 1 | 7 => at + 1,
        2 | 3 => at + 2,
        4..=6 => at + 4,
        10..=12 => at + 8,
        8 => at + 8 + number(file, at),
        9 => {
            let kind = u32::from_le_bytes(file[at..at + 4].try_into().unwrap());
            (0..number(file, at + 4)).fold(at + 12, |at, _| end(file, kind, at))
        }
        other => panic!("type {other}"),
    }
}

/// Positions of a GGUF key: its name and its value; and the end of the tensor table.
fn find(file: &[u8], key: &str) -> (Range<usize>, Range<usize>, usize) {
    let (tensors, keys) = (number(file, 8), number(file, 16));
    let (mut at, mut found) = (24, None);
    for _ in 0..keys {
        let name = at + 8..at + 8 + number(file, at);
        let kind = u32::from_le_bytes(file[name.end..name.end + 4].try_into().unwrap());
        let value = name.end + 4..end(file, kind, name.end + 4);
        at = value.end;
        if file[name.clone()] == *key.as_bytes() {
            found = Some((name, value));
        }
    }
    for _ in 0..tensors {
        at += 8 + number(file, at);
        let dimensions = u32::from_le_bytes(file[at..at + 4].try_into().unwrap());
        at += 4 + 8 * usize::try_from(dimensions).unwrap() + 4 + 8;
    }
    let (name, value) = found.unwrap();
    (name, value, at)
}

/// Copies a GGUF file with another chat template, or with none.
pub fn with_template(from: &Path, to: &Path, template: Option<&str>) {
    let file = std::fs::read(from).unwrap();
    let (name, value, table_end) = find(&file, "tokenizer.chat_template");
    let mut copy = file[..value.start].to_vec();
    match template {
        Some(template) => {
            copy.extend((template.len() as u64).to_le_bytes());
            copy.extend(template.as_bytes());
        }
        None => {
            // Renamed to a key that is never read.
            copy[name.end - 1] = b'X';
            copy.extend(&file[value.clone()]);
        }
    }
    copy.extend(&file[value.end..table_end]);
    // Offsets of tensors count from the start of the data, at the next multiple of 32.
    copy.resize(copy.len().next_multiple_of(32), 0);
    copy.extend(&file[table_end.next_multiple_of(32)..]);
    std::fs::write(to, copy).unwrap();
}
