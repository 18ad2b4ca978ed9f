//! Size of a prompt, counted while the body is read, for the reservations of token limits.

/// Size of a prompt: bytes of text, images and sounds. Text is strings and the `content` and `text` of objects; a number is
/// a token id and counts as four bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct PromptParts {
    pub(super) text: u64,
    pub(super) images: u64,
    pub(super) sounds: u64,
    /// Texts in the outermost list: strings, and lists of tokens.
    pub(super) texts: u64,
}

/// Bytes of text that a token id counts as: about the mean of English text in common vocabularies.
const BYTES_PER_TOKEN: u64 = 4;

impl PromptParts {
    pub(super) fn add_text(&mut self, bytes: u64) {
        self.text = self.text.saturating_add(bytes);
    }

    pub(super) fn add_tokens(&mut self, count: u64) {
        self.add_text(count.saturating_mul(BYTES_PER_TOKEN));
    }
}

/// Counts a field of a message by its name, where that is an image or a sound, and returns whether its value holds text.
/// Names are compared without case, because some servers do: too much may be reserved, never too little.
pub(super) fn part_of(name: &str, parts: &mut PromptParts) -> bool {
    // No letter of these names has a form beyond ASCII that folds to it.
    let is = |known: &str| name.eq_ignore_ascii_case(known);
    match name.len() {
        4 => return is("text"),
        7 if is("content") => return true,
        // Results of tools, and the calls and thoughts of earlier answers that a caller sends back.
        6 if is("output") => return true,
        8 if is("thinking") || is("function") => return true,
        9 if is("arguments") => return true,
        10 if is("tool_calls") => return true,
        13 if is("function_call") => return true,
        5 if is("image") => parts.images = parts.images.saturating_add(1),
        // Images and documents of the Messages API, files of the Responses API, and the list of images of Ollama.
        6 if is("source") || is("images") => parts.images = parts.images.saturating_add(1),
        7 if is("file_id") => parts.images = parts.images.saturating_add(1),
        8 if is("file_url") => parts.images = parts.images.saturating_add(1),
        9 if is("file_data") => parts.images = parts.images.saturating_add(1),
        9 if is("image_url") => parts.images = parts.images.saturating_add(1),
        5 if is("audio") => parts.sounds = parts.sounds.saturating_add(1),
        11 if is("input_audio") => parts.sounds = parts.sounds.saturating_add(1),
        _ => {}
    }
    false
}
