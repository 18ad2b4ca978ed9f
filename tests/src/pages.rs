//! The pages of the repository as tests read them: blocks, commands, links, anchors, names in code spans.
//! This module owns the forms of Markdown that the pages use and runs nothing.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use crate::repository;

/// A page.
#[derive(Debug, Clone)]
pub struct Page {
    /// Path from the root of the repository, such as `docs/concepts.md`.
    pub path: String,
    /// Markdown.
    pub text: String,
}

/// A fenced block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Block {
    /// Language of the fence, such as `yaml`; empty where it has none.
    pub language: String,
    pub text: String,
}

/// Every page at the root and below `docs/`, in the order of their paths.
pub fn pages() -> Vec<Page> {
    fn find(folder: &Path, deeper: bool, found: &mut Vec<PathBuf>) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                if deeper {
                    find(&path, deeper, found);
                }
            } else if path.extension().is_some_and(|kind| kind == "md") {
                found.push(path);
            }
        }
    }
    let root = repository();
    let mut found = Vec::new();
    find(&root, false, &mut found);
    find(&root.join("docs"), true, &mut found);
    found.sort();
    let page = |path: PathBuf| Page {
        path: path.strip_prefix(&root).unwrap().to_str().unwrap().to_owned(),
        text: std::fs::read_to_string(&path).unwrap(),
    };
    found.into_iter().map(page).collect()
}

impl Page {
    /// Fenced blocks in their order.
    pub fn blocks(&self) -> Vec<Block> {
        let mut found = Vec::new();
        let mut open: Option<Block> = None;
        for line in self.text.lines() {
            match (&mut open, line.strip_prefix("```")) {
                (None, Some(language)) => open = Some(Block { language: language.to_owned(), text: String::new() }),
                (Some(_), Some(_)) => found.extend(open.take()),
                (Some(block), None) => {
                    block.text.push_str(line);
                    block.text.push('\n');
                }
                (None, None) => {}
            }
        }
        assert!(open.is_none(), "{}: a block is left open", self.path);
        found
    }

    /// Paragraphs outside of fenced blocks; a heading and a row of a table are one each.
    fn paragraphs(&self) -> Vec<String> {
        let mut found = vec![String::new()];
        let mut fenced = false;
        for line in self.text.lines() {
            let alone = line.starts_with('#') || line.starts_with('|');
            let fence = line.starts_with("```");
            if fence || alone || line.is_empty() {
                found.push(String::new());
            }
            fenced ^= fence;
            if !fence && !fenced {
                let last = found.last_mut().unwrap();
                last.push_str(line);
                last.push(' ');
            }
            if alone {
                found.push(String::new());
            }
        }
        found
    }

    /// Paragraphs without what stands in code spans, and the spans.
    fn split(&self) -> (Vec<String>, Vec<String>) {
        let (mut prose, mut spans) = (Vec::new(), Vec::new());
        for paragraph in self.paragraphs() {
            let parts: Vec<&str> = paragraph.split('`').collect();
            prose.push(parts.iter().step_by(2).copied().collect());
            spans.extend(parts.iter().skip(1).step_by(2).map(|span| (*span).to_owned()));
        }
        (prose, spans)
    }

    /// Code spans.
    pub fn spans(&self) -> Vec<String> {
        self.split().1
    }

    /// Targets of links.
    pub fn links(&self) -> Vec<String> {
        let prose = self.split().0;
        let targets = prose.iter().flat_map(|text| text.split("](").skip(1));
        targets.map(|rest| rest.split(')').next().unwrap().to_owned()).collect()
    }

    /// Anchors of this page: headings, as forges spell them, and explicit ones.
    pub fn anchors(&self) -> BTreeSet<String> {
        let mut found = BTreeSet::new();
        let mut fenced = false;
        for line in self.text.lines() {
            fenced ^= line.starts_with("```");
            if fenced {
                continue;
            }
            let heading = line.trim_start_matches('#');
            if heading.len() < line.len() && heading.starts_with(' ') {
                let slug = slug(heading.trim());
                let further = (1..).map(|n| format!("{slug}-{n}"));
                let free = std::iter::once(slug.clone()).chain(further).find(|slug| !found.contains(slug));
                found.extend(free);
            }
            found.extend(line.split("<a id=\"").skip(1).filter_map(|rest| rest.split('"').next()).map(str::to_owned));
        }
        found
    }
}

/// A heading as forges spell it in a link.
pub(crate) fn slug(heading: &str) -> String {
    let kept = heading.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    kept.map(|c| if c == ' ' { '-' } else { c.to_ascii_lowercase() }).collect()
}

/// Commands of a block: one a line, and on to where its quotes are closed or no backslash ends a line. A comment stands
/// behind two blanks.
pub fn commands(block: &str) -> Vec<String> {
    let mut all = Vec::new();
    let mut one = String::new();
    for line in block.lines() {
        one.push_str(line);
        if one.matches('\'').count() % 2 == 1 || line.ends_with('\\') {
            one.push('\n');
            continue;
        }
        let whole = std::mem::take(&mut one);
        let command = whole.split("  #").next().unwrap().trim();
        if !command.is_empty() && !command.starts_with('#') {
            all.push(command.to_owned());
        }
    }
    assert!(one.is_empty(), "a command is left open in {block}");
    all
}

/// The first line of an expected output that an output does not have, in their order. `…` stands for any text, and lines
/// that nobody expects may stand between.
pub fn missing<'e>(expected: &'e str, output: &str) -> Option<&'e str> {
    let mut lines = output.lines();
    expected.lines().filter(|line| !line.trim().is_empty()).find(|wanted| !lines.any(|line| is_like(wanted, line)))
}

/// True if a line equals `wanted`, with any text for `…`.
fn is_like(wanted: &str, line: &str) -> bool {
    let parts: Vec<&str> = wanted.trim().split('…').collect();
    let (first, last) = (parts[0], parts[parts.len() - 1]);
    let line = line.trim();
    if parts.len() == 1 {
        return line == first;
    }
    let Some(mut rest) = line.strip_prefix(first).and_then(|rest| rest.strip_suffix(last)) else { return false };
    parts[1..parts.len() - 1].iter().all(|part| {
        rest.find(part).is_some_and(|at| {
            rest = &rest[at + part.len()..];
            true
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(text: &str) -> Page {
        Page { path: "x.md".to_owned(), text: text.to_owned() }
    }

    #[test]
    fn links_and_spans_are_found_outside_of_code_and_anchors_as_forges_spell_them() {
        let page = page(
            "# A `b` (c): d\n\nSee [one](a.md#b), [`two`](b.md) and\n[three\nlines](c.md). `[no](d.md)`\n\n```sh\n[no](e.md)\n# no\n```\n## A b c d\n| <a id=\"x\"></a>x | [cell](f.md) |\n## A b c d\n",
        );
        assert_eq!(page.links(), ["a.md#b", "b.md", "c.md", "f.md"]);
        assert_eq!(page.spans(), ["b", "two", "[no](d.md)"]);
        let anchors = ["a-b-c-d", "a-b-c-d-1", "a-b-c-d-2", "x"];
        assert_eq!(page.anchors().into_iter().collect::<Vec<_>>(), anchors);
        assert_eq!(page.blocks(), [Block { language: "sh".to_owned(), text: "[no](e.md)\n# no\n".to_owned() }]);
    }

    #[test]
    fn an_output_has_the_expected_lines_in_their_order() {
        let output = "HTTP/1.1 200 OK\nx: 1\n{\"a\":1,\"b\":2}\n";
        for (expected, first) in [
            ("HTTP/1.1 200 OK\n{\"a\"…\"b\":2}", None),
            ("…\"b\"…", None),
            ("{\"a\":…}\nx: 1", Some("x: 1")),
            ("x: 2", Some("x: 2")),
            ("…\"b\"…\"a\"…", Some("…\"b\"…\"a\"…")),
            ("x: 1…1", Some("x: 1…1")),
        ] {
            assert_eq!(missing(expected, output), first, "{expected}");
        }
    }

    #[test]
    fn a_command_goes_on_to_where_its_quotes_are_closed_and_over_backslashes() {
        let block = "make x    # a\ncurl -d '{\n 1}'\n# b\ncurl \\\n  -s\n";
        assert_eq!(commands(block), ["make x", "curl -d '{\n 1}'", "curl \\\n  -s"]);
    }
}
