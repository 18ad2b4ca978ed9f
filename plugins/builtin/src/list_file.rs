//! Lists in files of their own, an entry on each line. Blank lines and lines that begin with `#` or `;` are comments.

use std::io::ErrorKind;

use spillway_config::values::FilePath;
use spillway_filter::FieldError;

/// Texts of the files of a key, each with its number. A file that is not there is left out: the configuration reports it by itself.
pub(crate) fn texts(key: &str, files: &[FilePath], errors: &mut Vec<FieldError>) -> Vec<(usize, String)> {
    let mut texts = Vec::new();
    for (n, file) in files.iter().enumerate() {
        match spillway_config::read_text(file) {
            Ok(text) => texts.push((n, text)),
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => errors.push(FieldError::at([key, &n.to_string()], format!("cannot read the file: {error}"))),
        }
    }
    texts
}

/// Gives each entry of file `n` of a key to `take`, whose error is a message. The first mistake is told with its line.
pub(crate) fn read(
    key: &str,
    n: usize,
    text: &str,
    errors: &mut Vec<FieldError>,
    mut take: impl FnMut(&str) -> Result<(), String>,
) {
    if let Some((line, why)) = entries(text).find_map(|(line, entry)| Some((line, take(entry).err()?))) {
        errors.push(FieldError::at([key, &n.to_string()], format!("line {line} of the file: {why}")));
    }
}

/// Entries of a text with the numbers of their lines, counted from one.
fn entries(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let lines = text.trim_start_matches('\u{feff}').lines().enumerate();
    lines.map(|(n, line)| (n + 1, line.trim())).filter(|(_, line)| !line.is_empty() && !line.starts_with(['#', ';']))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_told_from_comments_and_have_the_lines_of_an_editor() {
        let text = "\u{feff}# networks\r\n\r\n 10.0.0.0/8 \r\n; old\nsecond # third\n";
        assert_eq!(entries(text).collect::<Vec<_>>(), [(3, "10.0.0.0/8"), (5, "second # third")]);
    }

    #[test]
    fn the_first_mistake_of_each_file_is_told_and_a_file_that_is_missing_is_left_to_others() {
        let folder = tempfile::tempdir().unwrap();
        let files = ["a", "none", "b"].map(|name| FilePath::from(folder.path().join(name)));
        std::fs::write(&*files[0], "good\nbad\nworse\n").unwrap();
        std::fs::write(&*files[2], [0xff]).unwrap();
        let (mut errors, mut taken) = (Vec::new(), Vec::new());
        for (n, text) in texts("deny", &files, &mut errors) {
            read("deny", n, &text, &mut errors, |entry| {
                taken.push(entry.to_owned());
                if entry == "good" { Ok(()) } else { Err(format!("found `{entry}`")) }
            });
        }
        assert_eq!(taken, ["good", "bad"]);
        let told: Vec<_> = errors.iter().map(|error| format!("{error:?}")).collect();
        assert_eq!(told.len(), 2, "{told:?}");
        assert!(told[0].contains("not UTF-8"), "{told:?}");
        assert!(told[1].contains("line 2 of the file: found `bad`"), "{told:?}");
    }
}
