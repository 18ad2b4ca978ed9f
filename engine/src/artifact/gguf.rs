//! GGUF, versions 2 and 3 (ggml's docs/gguf.md): header, metadata, tensor table. Everything read is bounded by the
//! rest of the file; a count that the file cannot hold is refused before anything is allocated for it.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;

use super::types::{TensorType, any_type};

/// Longest name of a key or tensor, in bytes (64 in ggml for tensors).
const MAX_NAME: usize = 65_535;
/// Most keys and tensors; real files have some hundreds.
const MAX_ENTRIES: u64 = 65_536;
/// Most dimensions of a tensor, as in ggml.
const MAX_DIMENSIONS: u32 = 4;

/// A metadata value.
#[derive(Debug, Clone, PartialEq)]
pub enum MetaValue {
    /// Any unsigned integer.
    Unsigned(u64),
    /// Any signed integer.
    Signed(i64),
    /// A float.
    Float(f64),
    /// A boolean.
    Bool(bool),
    /// A string; invalid UTF-8 is replaced.
    String(String),
    /// An array of strings.
    Strings(Vec<String>),
    /// An array of numbers.
    Numbers(Vec<f64>),
    /// An array of another type, which this engine does not use.
    Skipped,
}

impl MetaValue {
    /// The value as a whole number that is not negative.
    pub fn as_u64(&self) -> Option<u64> {
        match self {
            Self::Unsigned(n) => Some(*n),
            Self::Signed(n) => u64::try_from(*n).ok(),
            _ => None,
        }
    }
    /// The value as a number.
    #[allow(clippy::cast_precision_loss, reason = "numbers of a configuration are small")]
    pub fn as_f64(&self) -> Option<f64> {
        match self {
            Self::Float(f) => Some(*f),
            Self::Unsigned(n) => Some(*n as f64),
            Self::Signed(n) => Some(*n as f64),
            _ => None,
        }
    }
    /// The value as a boolean.
    pub fn as_bool(&self) -> Option<bool> {
        match self {
            Self::Bool(b) => Some(*b),
            _ => None,
        }
    }
}

/// Entry of the tensor table.
#[derive(Debug, Clone)]
pub struct TensorEntry {
    /// Type of the tensor, if this engine runs it.
    pub kind: Option<TensorType>,
    type_name: String,
    dimensions: Vec<usize>,
    /// Number of values.
    pub elements: u64,
    /// Byte range of the data in its part of the file; checked against the part's length.
    pub range: Range<usize>,
    /// Index of the part of a model that is split into several files.
    pub part: usize,
}

impl TensorEntry {
    /// Makes an entry whose range is as long as type and shape say; dimensions from the contiguous one on. `None` if
    /// they do not match.
    pub(super) fn new(
        kind: Option<TensorType>,
        type_name: String,
        dimensions: Vec<usize>,
        range: Range<usize>,
        part: usize,
    ) -> Option<Self> {
        let elements = dimensions.iter().try_fold(1usize, |all, n| all.checked_mul(*n)).filter(|n| *n > 0)?;
        if let Some((values, block)) = kind.map(TensorType::block)
            && (elements / values).checked_mul(block) != Some(range.len())
        {
            return None;
        }
        Some(Self { kind, type_name, dimensions, elements: u64::try_from(elements).ok()?, range, part })
    }

    /// Values in a row, and number of rows.
    pub fn shape(&self) -> (usize, usize) {
        let columns = self.dimensions.first().copied().unwrap_or(1);
        (columns, self.dimensions.iter().skip(1).product())
    }
    /// Name of the tensor's type.
    pub fn type_name(&self) -> &str {
        &self.type_name
    }
}

/// Differences of a file's weights from a GGUF file of the same architecture.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct WeightLayout {
    /// True if the rows of queries and keys are ordered for a rotation of halves, as in training, whatever the
    /// architecture.
    pub rope_halves: bool,
    /// True if the weights of norms are stored less one.
    pub norms_less_one: bool,
}

/// Header, metadata and tensor table of a file.
#[derive(Debug, Default)]
pub struct Header {
    /// Metadata by key.
    pub metadata: HashMap<String, MetaValue>,
    /// Tensors by name.
    pub tensors: BTreeMap<String, TensorEntry>,
    /// Differences from GGUF's layout of weights.
    pub layout: WeightLayout,
    /// True if the tokenizer is a file beside the model.
    pub has_tokenizer_beside: bool,
}

/// Forward-only reader of the file.
struct Cursor<'a> {
    file: &'a [u8],
    at: usize,
}

type Parsed<T> = Result<T, String>;

impl<'a> Cursor<'a> {
    fn take(&mut self, n: usize) -> Parsed<&'a [u8]> {
        let end = self.at.checked_add(n).filter(|end| *end <= self.file.len());
        let part = end.and_then(|end| self.file.get(self.at..end));
        match (part, end) {
            (Some(part), Some(end)) => {
                self.at = end;
                Ok(part)
            }
            _ => Err(format!("the file ends at byte {} in the middle of its header", self.file.len())),
        }
    }
    fn array<const N: usize>(&mut self) -> Parsed<[u8; N]> {
        self.take(N)?.try_into().map_err(|_| "it ends in the middle of its header".to_owned())
    }
    fn u32(&mut self) -> Parsed<u32> {
        Ok(u32::from_le_bytes(self.array()?))
    }
    fn u64(&mut self) -> Parsed<u64> {
        Ok(u64::from_le_bytes(self.array()?))
    }
    fn left(&self) -> u64 {
        u64::try_from(self.file.len() - self.at).unwrap_or(0)
    }
    fn string(&mut self) -> Parsed<String> {
        let length = self.u64()?;
        if length > self.left() {
            return Err(format!("a string at byte {} is longer than the file", self.at));
        }
        let bytes = self.take(usize::try_from(length).map_err(|e| e.to_string())?)?;
        Ok(String::from_utf8_lossy(bytes).into_owned())
    }
    fn name(&mut self) -> Parsed<String> {
        let at = self.at;
        let name = self.string()?;
        if name.len() > MAX_NAME {
            return Err(format!("the name at byte {at} has {} bytes; expected at most {MAX_NAME}", name.len()));
        }
        Ok(name)
    }

    fn scalar(&mut self, kind: u32) -> Parsed<MetaValue> {
        Ok(match kind {
            0 => MetaValue::Unsigned(u8::from_le_bytes(self.array()?).into()),
            1 => MetaValue::Signed(i8::from_le_bytes(self.array()?).into()),
            2 => MetaValue::Unsigned(u16::from_le_bytes(self.array()?).into()),
            3 => MetaValue::Signed(i16::from_le_bytes(self.array()?).into()),
            4 => MetaValue::Unsigned(self.u32()?.into()),
            5 => MetaValue::Signed(i32::from_le_bytes(self.array()?).into()),
            6 => MetaValue::Float(f32::from_le_bytes(self.array()?).into()),
            7 => MetaValue::Bool(u8::from_le_bytes(self.array()?) != 0),
            8 => MetaValue::String(self.string()?),
            10 => MetaValue::Unsigned(self.u64()?),
            11 => MetaValue::Signed(i64::from_le_bytes(self.array()?)),
            12 => MetaValue::Float(f64::from_le_bytes(self.array()?)),
            other => return Err(format!("unknown type {other} of a metadata value at byte {}", self.at)),
        })
    }

    fn value(&mut self) -> Parsed<MetaValue> {
        let kind = self.u32()?;
        if kind != 9 {
            return self.scalar(kind);
        }
        let kind = self.u32()?;
        let count = self.u64()?;
        let width: u64 = match kind {
            0 | 1 | 7 => 1,
            2 | 3 => 2,
            4..=6 => 4,
            8 | 10..=12 => 8,
            other => return Err(format!("unknown type {other} of an array at byte {}", self.at)),
        };
        // Every entry takes at least `width` bytes, so the file bounds the allocation.
        if count.checked_mul(width).is_none_or(|bytes| bytes > self.left()) {
            return Err(format!("an array of {count} entries at byte {} is longer than the file", self.at));
        }
        let count = usize::try_from(count).map_err(|e| e.to_string())?;
        match kind {
            8 => (0..count).map(|_| self.string()).collect::<Parsed<_>>().map(MetaValue::Strings),
            4..=6 | 10..=12 => {
                let numbers = (0..count).map(|_| Ok(self.scalar(kind)?.as_f64().unwrap_or(0.0)));
                numbers.collect::<Parsed<_>>().map(MetaValue::Numbers)
            }
            _ => {
                for _ in 0..count {
                    self.scalar(kind)?;
                }
                Ok(MetaValue::Skipped)
            }
        }
    }
}

impl Header {
    /// Parses and checks the header of a file.
    pub fn parse(file: &[u8]) -> Parsed<Self> {
        let mut cursor = Cursor { file, at: 0 };
        if cursor.take(4)? != b"GGUF" {
            return Err("the file does not begin with GGUF".into());
        }
        let version = cursor.u32()?;
        if !matches!(version, 2 | 3) {
            return Err(format!("GGUF version {version}; expected 2 or 3 (a big-endian file looks like this too)"));
        }
        let (tensor_count, meta_count) = (cursor.u64()?, cursor.u64()?);
        if tensor_count > MAX_ENTRIES || meta_count > MAX_ENTRIES {
            return Err(format!(
                "{tensor_count} tensors and {meta_count} keys; expected at most {MAX_ENTRIES} of each"
            ));
        }
        let mut metadata = HashMap::new();
        for _ in 0..meta_count {
            let key = cursor.name()?;
            let value = cursor.value().map_err(|e| format!("key `{}`: {e}", shown(&key)))?;
            if metadata.insert(key.clone(), value).is_some() {
                return Err(format!("duplicate key `{}`", shown(&key)));
            }
        }
        let alignment = match metadata.get("general.alignment").map(MetaValue::as_u64) {
            None => 32,
            Some(Some(n)) if n.is_power_of_two() && n <= 1 << 20 => n,
            Some(_) => return Err("`general.alignment` is not a power of two".into()),
        };
        let mut table = Vec::new();
        for _ in 0..tensor_count {
            table.push(tensor_line(&mut cursor)?);
        }
        let start = u64::try_from(cursor.at).map_err(|e| e.to_string())?.next_multiple_of(alignment);
        place(table, start, alignment, u64::try_from(file.len()).map_err(|e| e.to_string())?).map(|tensors| Self {
            metadata,
            tensors,
            ..Self::default()
        })
    }
}

fn shown(name: &str) -> String {
    name.chars().take(80).flat_map(char::escape_debug).collect()
}

struct TensorLine {
    name: String,
    kind: Option<TensorType>,
    type_name: String,
    dimensions: Vec<usize>,
    elements: u64,
    bytes: u64,
    offset: u64,
}

fn tensor_line(cursor: &mut Cursor<'_>) -> Parsed<TensorLine> {
    let name = cursor.name()?;
    let wrong = |what: String| format!("tensor `{}`: {what}", shown(&name));
    let count = cursor.u32().map_err(wrong)?;
    if count == 0 || count > MAX_DIMENSIONS {
        return Err(wrong(format!("{count} dimensions; expected 1 to {MAX_DIMENSIONS}")));
    }
    let mut dimensions = Vec::new();
    let mut elements: u64 = 1;
    for _ in 0..count {
        let n = cursor.u64().map_err(wrong)?;
        elements = elements
            .checked_mul(n)
            .filter(|e| *e > 0 && *e <= 1 << 48)
            .ok_or_else(|| wrong(format!("a dimension of {n}")))?;
        dimensions.push(usize::try_from(n).map_err(|e| wrong(e.to_string()))?);
    }
    let number = cursor.u32().map_err(wrong)?;
    let offset = cursor.u64().map_err(wrong)?;
    // The size of an unknown type is not known. The type is named in an error if a model needs the tensor.
    let (type_name, values, block) = any_type(number)
        .map_or_else(|| (format!("number {number}"), 1, 0), |(name, values, block)| (name.to_owned(), values, block));
    let kind = TensorType::from_ggml(number);
    let values = u64::try_from(values).map_err(|e| e.to_string())?;
    let columns = dimensions.first().copied().and_then(|n| u64::try_from(n).ok()).unwrap_or(0);
    if !columns.is_multiple_of(values) {
        return Err(wrong(format!("rows of {columns} values do not divide into blocks of {values}")));
    }
    let bytes = (elements / values).checked_mul(u64::try_from(block).map_err(|e| e.to_string())?);
    let bytes = bytes.ok_or_else(|| wrong("its size overflows".into()))?;
    Ok(TensorLine { name, kind, type_name, dimensions, elements, bytes, offset })
}

/// Assigns byte ranges to the table: every tensor inside the file, aligned, without overlap.
fn place(table: Vec<TensorLine>, start: u64, alignment: u64, length: u64) -> Parsed<BTreeMap<String, TensorEntry>> {
    let mut tensors = BTreeMap::new();
    let mut ranges = Vec::new();
    for line in table {
        let wrong = |what: String| format!("tensor `{}`: {what}", shown(&line.name));
        if !line.offset.is_multiple_of(alignment) {
            return Err(wrong(format!("its offset {} is not aligned to {alignment}", line.offset)));
        }
        let from = start.checked_add(line.offset).ok_or_else(|| wrong("its offset overflows".into()))?;
        let to = from.checked_add(line.bytes).filter(|to| *to <= length).ok_or_else(|| {
            wrong(format!("its data take bytes {from} to {}; the file has {length}", from.saturating_add(line.bytes)))
        })?;
        ranges.push((from, to, line.name.clone()));
        let range =
            usize::try_from(from).map_err(|e| e.to_string())?..usize::try_from(to).map_err(|e| e.to_string())?;
        let entry = TensorEntry {
            kind: line.kind,
            type_name: line.type_name,
            dimensions: line.dimensions,
            elements: line.elements,
            range,
            part: 0,
        };
        if tensors.insert(line.name.clone(), entry).is_some() {
            return Err(format!("duplicate tensor `{}`", shown(&line.name)));
        }
    }
    ranges.sort();
    for pair in ranges.windows(2) {
        if let [(_, end, first), (begin, _, second)] = pair
            && begin < end
        {
            return Err(format!("tensors `{}` and `{}` overlap", shown(first), shown(second)));
        }
    }
    Ok(tensors)
}
