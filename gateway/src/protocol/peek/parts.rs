//! How much a prompt holds, counted while it is read and forgotten: what limits of tokens reserve beforehand.

/// What a prompt is made of: the bytes of its text (strings, the `content` and `text` of objects, and four for a number,
/// which there is the id of a token), its images and its sounds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Parts {
    pub(super) text: u64,
    pub(super) images: u64,
    pub(super) sounds: u64,
    /// Texts in the outermost list: strings, and lists of tokens.
    pub(super) texts: u64,
}

/// What a token stands for where only its id is given.
const BYTES_PER_TOKEN: u64 = 4;

impl Parts {
    pub(super) fn add_text(&mut self, bytes: u64) {
        self.text = self.text.saturating_add(bytes);
    }

    pub(super) fn add_tokens(&mut self, count: u64) {
        self.add_text(count.saturating_mul(BYTES_PER_TOKEN));
    }
}

/// What a field of a message is by its name: images and sounds are counted here. Says whether its value holds text. A
/// spelling that only readers without case take for the name counts as well: too much may be reserved, never too little.
pub(super) fn part_of(name: &str, parts: &mut Parts) -> bool {
    // No letter of these names has a form beyond ASCII that folds to it.
    let is = |known: &str| name.eq_ignore_ascii_case(known);
    match name.len() {
        4 => return is("text"),
        7 => return is("content"),
        5 if is("image") => parts.images = parts.images.saturating_add(1),
        9 if is("image_url") => parts.images = parts.images.saturating_add(1),
        5 if is("audio") => parts.sounds = parts.sounds.saturating_add(1),
        11 if is("input_audio") => parts.sounds = parts.sounds.saturating_add(1),
        _ => {}
    }
    false
}
