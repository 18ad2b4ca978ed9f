//! Label of an answer, as the pipeline has read it.

/// Longest name of a label, in bytes.
pub const MAX_LABEL: usize = 64;
/// Longest name of a class, in bytes.
pub const MAX_NAME: usize = 256;
/// Longest comment, in bytes.
pub const MAX_COMMENT: usize = 4096;

/// Answer as a class or a number.
#[derive(Debug, Clone, PartialEq)]
pub enum Answer {
    /// Name of a class.
    Class(String),
    /// Number, for models that predict numbers.
    Number(f64),
}

/// Label of an answer. Fields that are `None` leave what was said of the request before.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct NewLabel {
    /// Score from 0 (useless) to 1 (right).
    pub score: Option<f64>,
    /// Name of a kind of answer or fault.
    pub label: Option<String>,
    /// Answer that the model gave.
    pub predicted: Option<Answer>,
    /// Answer that was right.
    pub expected: Option<Answer>,
    /// Probability, from 0 to 1, that the model gave to its answer.
    pub confidence: Option<f64>,
}
