//! Search of a guard in texts, whole or in parts, and what stands in the place of what it finds.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};

use spillway_filter::Counter;
use spillway_patterns::{Detector, without_cut_end};

use super::{Action, Side};

/// Pattern of a guard.
#[derive(Debug)]
pub(super) struct Pattern {
    /// Name in refusals and in what stands for a thing that was found.
    pub(super) name: String,
    /// Finds it.
    pub(super) detector: Detector,
    /// Treatment of what it finds.
    pub(super) action: Action,
    /// Findings in prompts.
    pub(super) in_prompts: Tally,
    /// Findings in answers.
    pub(super) in_answers: Tally,
}

/// Findings of a pattern on one side.
#[derive(Debug, Default)]
pub(super) struct Tally {
    /// Their number.
    pub(super) found: Counter,
    /// True once a guard in shadow mode has logged one.
    is_logged: AtomicBool,
}

/// Patterns of a guard, in the order of the file.
#[derive(Debug)]
pub(super) struct Patterns {
    /// The patterns.
    pub(super) all: Vec<Pattern>,
    /// Bytes of a text in parts that are held back at most, and within which a thing is found that came in parts.
    pub(super) window: usize,
    /// Route of a guard in shadow mode, whose findings change nothing.
    pub(super) shadow: Option<Box<str>>,
}

/// Thing that was found: where, and by which pattern.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Found {
    range: Range<usize>,
    pattern: usize,
}

/// Name of a pattern whose finding refuses the text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refused(pub(super) String);

/// Most things of one request that are masked: each is kept until its answer has ended.
const MAX_MASKED: usize = 1000;

/// Bytes in front of a thing that tell its kind, such as `password is`, where patterns are of a kind.
const CONTEXT: usize = 128;

/// Things that stand masked in a request, by the names that the model reads.
#[derive(Debug, Default)]
pub(super) struct Masked {
    /// Things by the names that the model reads.
    things: HashMap<String, String>,
    /// Names by things.
    names: HashMap<String, String>,
    /// Number of the last thing of each pattern.
    last: HashMap<String, usize>,
}

/// Longest name of a masked thing in bytes: that of a pattern, a number and marks.
const MAX_MASK: usize = 48;

impl Masked {
    /// True if nothing is masked.
    pub(super) fn is_empty(&self) -> bool {
        self.things.is_empty()
    }

    /// Name for a thing: one that came before has its name again. `None` where there are too many.
    fn name_of(&mut self, pattern: &str, thing: &str) -> Option<String> {
        if let Some(name) = self.names.get(thing) {
            return Some(name.clone());
        }
        if self.things.len() >= MAX_MASKED {
            return None;
        }
        let last = self.last.entry(pattern.to_owned()).or_default();
        *last += 1;
        let name = format!("[{pattern}-{last}]");
        self.things.insert(name.clone(), thing.to_owned());
        self.names.insert(thing.to_owned(), name.clone());
        Some(name)
    }

    /// Text with the things in place of their names.
    fn unmask(&self, text: &str) -> Option<String> {
        if self.is_empty() || !text.contains('[') {
            return None;
        }
        let (mut out, mut rest) = (String::with_capacity(text.len()), text);
        // Only what stood in the text is a name: not what a thing put into it.
        while let Some(at) = rest.find('[') {
            let (before, from) = rest.split_at_checked(at).unwrap_or((rest, ""));
            out.push_str(before);
            let end = from.bytes().take(MAX_MASK).position(|byte| byte == b']').map_or(0, |end| end + 1);
            match self.things.get(from.get(..end).unwrap_or_default()) {
                Some(thing) => {
                    out.push_str(thing);
                    rest = from.get(end..).unwrap_or_default();
                }
                None => {
                    out.push('[');
                    rest = from.get(1..).unwrap_or_default();
                }
            }
        }
        out.push_str(rest);
        (out != text).then_some(out)
    }

    /// Position from which the end of a text may be the beginning of a name.
    fn begun_name(&self, text: &str) -> Option<usize> {
        let at = text.rfind('[')?;
        let end = text.get(at..).filter(|end| end.len() < MAX_MASK)?;
        self.things.keys().any(|name| name.len() > end.len() && name.starts_with(end)).then_some(at)
    }
}

impl Patterns {
    /// True if the end of a text tells what may go on.
    fn knows_ends(&self) -> bool {
        self.all.iter().all(|pattern| pattern.detector.knows_ends())
    }

    /// Things in a text, in order; of two that overlap the one that begins first.
    fn find(&self, text: &str) -> Vec<Found> {
        let (mut all, mut ranges) = (Vec::new(), Vec::new());
        for (pattern, known) in self.all.iter().enumerate() {
            known.detector.find(text, &mut ranges);
            all.extend(ranges.drain(..).map(|range| Found { range, pattern }));
        }
        all.sort_by_key(|found| (found.range.start, std::cmp::Reverse(found.range.end), found.pattern));
        if self.shadow.is_some() {
            // Nothing is replaced, and what one pattern finds must not hide what another would refuse.
            return all;
        }
        let mut end = 0;
        all.retain(|found| {
            let is_first = found.range.start >= end && !found.range.is_empty();
            end = if is_first { found.range.end } else { end };
            is_first
        });
        all
    }

    /// Counts findings of a pattern. A guard in shadow mode logs the first one of each pattern and side.
    fn count(&self, pattern: &Pattern, side: Side, times: usize) {
        let tally = match side {
            Side::Prompt => &pattern.in_prompts,
            Side::Answer => &pattern.in_answers,
        };
        tally.found.add(u64::try_from(times).unwrap_or(u64::MAX));
        if let Some(route) = &self.shadow
            && !tally.is_logged.swap(true, Ordering::Relaxed)
        {
            let (pattern, at) = (pattern.name.as_str(), side.as_str());
            tracing::info!(event = "guard_shadow_finding", %route, pattern, at);
        }
    }

    /// Counts what a text of a guard in shadow mode has.
    pub(super) fn tell(&self, text: &str, side: Side) {
        for found in self.find(text) {
            if let Some(pattern) = self.all.get(found.pattern) {
                self.count(pattern, side, 1);
            }
        }
    }

    /// Refuses a text in which a pattern whose action that is finds something.
    fn judge(&self, text: &str, side: Side) -> Result<(), Refused> {
        // What one pattern finds may hide what another finds in it.
        let mut ranges = Vec::new();
        for pattern in self.all.iter().filter(|pattern| pattern.action == Action::Refuse) {
            pattern.detector.find(text, &mut ranges);
            if !ranges.is_empty() {
                self.count(pattern, side, ranges.len());
                return Err(Refused(pattern.name.clone()));
            }
        }
        Ok(())
    }

    /// First pattern that finds anything in a text that cannot be changed.
    pub(super) fn first_in(&self, text: &str, side: Side) -> Option<&str> {
        let found = self.find(text);
        let pattern = found.first().and_then(|found| self.all.get(found.pattern))?;
        self.count(pattern, side, 1);
        Some(pattern.name.as_str())
    }

    /// Text of a request as the model reads it; `None` where it stays.
    pub(super) fn of_request(&self, text: &str, masked: &mut Masked) -> Result<Option<String>, Refused> {
        self.judge(text, Side::Prompt)?;
        self.replaced(text, Side::Prompt, |pattern, thing| match pattern.action {
            Action::Mask => masked.name_of(&pattern.name, thing).ok_or_else(|| Refused(pattern.name.clone())),
            _ => Ok(format!("[{}]", pattern.name)),
        })
    }

    /// Whole text of an answer as the caller reads it; `None` where it stays.
    pub(super) fn of_answer(&self, text: &str, masked: &Masked) -> Result<Option<String>, Refused> {
        self.judge(text, Side::Answer)?;
        let replaced = self.replaced(text, Side::Answer, |pattern, _| Ok(format!("[{}]", pattern.name)))?;
        let unmasked = masked.unmask(replaced.as_deref().unwrap_or(text));
        Ok(unmasked.or(replaced))
    }

    fn replaced(
        &self,
        text: &str,
        side: Side,
        mut with: impl FnMut(&Pattern, &str) -> Result<String, Refused>,
    ) -> Result<Option<String>, Refused> {
        let found = self.find(text);
        if found.is_empty() {
            return Ok(None);
        }
        let (mut out, mut copied) = (String::with_capacity(text.len()), 0);
        for Found { range, pattern } in found {
            let Some(pattern) = self.all.get(pattern) else { continue };
            self.count(pattern, side, 1);
            out.push_str(text.get(copied..range.start).unwrap_or_default());
            out.push_str(&with(pattern, text.get(range.clone()).unwrap_or_default())?);
            copied = range.end;
        }
        out.push_str(text.get(copied..).unwrap_or_default());
        Ok(Some(out))
    }
}

/// Text of an answer that comes in parts. Its end is held back while it may be the beginning of something, for a window at most.
#[derive(Debug, Default)]
pub(super) struct Flowing {
    /// End of what has passed, as the model wrote it: what is looked for may begin in it.
    passed: String,
    /// Text that is held back.
    held: String,
    /// True if what has passed ends inside a thing, which goes on.
    is_inside: bool,
}

impl Flowing {
    /// Adds a part, the last one with `is_last`, and returns what passes now.
    pub(super) fn push(
        &mut self,
        part: &str,
        is_last: bool,
        patterns: &Patterns,
        masked: &Masked,
    ) -> Result<String, Refused> {
        self.held.push_str(part);
        let text = [self.passed.as_str(), self.held.as_str()].concat();
        patterns.judge(&text, Side::Answer)?;
        let (base, found) = (self.passed.len(), patterns.find(&text));
        let cut = if is_last { text.len() } else { self.cut(&text, &found, patterns, masked) };
        let (mut out, mut copied) = (String::new(), base);
        let passes = |found: &&Found| found.range.start.max(base) < found.range.end.min(cut);
        let was_inside = self.is_inside;
        self.is_inside &= cut <= base;
        for Found { range, pattern } in found.iter().filter(passes) {
            let Some(pattern) = patterns.all.get(*pattern) else { continue };
            // A thing that passes in parts is one thing.
            if range.start >= base || !was_inside {
                patterns.count(pattern, Side::Answer, 1);
            }
            self.is_inside |= range.end > cut || (range.end == text.len() && cut == text.len());
            out.push_str(text.get(copied..range.start.max(copied)).unwrap_or_default());
            out.extend(["[", pattern.name.as_str(), "]"]);
            copied = range.end.min(cut);
        }
        out.push_str(text.get(copied..cut).unwrap_or_default());
        let kept = text.get(..cut).unwrap_or_default();
        let context = if patterns.knows_ends() { patterns.window.min(CONTEXT) } else { patterns.window };
        let from = kept.ceil_char_boundary(kept.len().saturating_sub(context));
        text.get(cut..).unwrap_or_default().clone_into(&mut self.held);
        self.passed = kept.get(from..).unwrap_or_default().to_owned();
        Ok(masked.unmask(&out).unwrap_or(out))
    }

    /// Position up to which the text may pass.
    fn cut(&self, text: &str, found: &[Found], patterns: &Patterns, masked: &Masked) -> usize {
        let (base, window) = (self.passed.len(), patterns.window);
        let in_window = text.floor_char_boundary(text.len().saturating_sub(window));
        let mut cut = if patterns.knows_ends() { in_window.max(without_cut_end(text).len()) } else { in_window };
        if let Some(at) = masked.begun_name(text) {
            cut = cut.min(at);
        }
        // What reaches to the end may go on.
        for found in found.iter().rev() {
            if found.range.end > cut || found.range.end == text.len() {
                cut = cut.min(found.range.start);
            }
        }
        let cut = cut.max(base);
        // A thing that is longer than any of its kind passes in parts, each of them replaced.
        if text.len() - cut > window.saturating_mul(4) { text.len() } else { cut }
    }

    /// True if nothing is held back.
    pub(super) fn is_empty(&self) -> bool {
        self.held.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use spillway_patterns::Kind;

    use super::*;

    fn patterns(window: usize, expression: Option<&str>) -> Patterns {
        let pattern = |name: &str, detector, action| {
            let (in_prompts, in_answers) = Default::default();
            Pattern { name: name.to_owned(), detector, action, in_prompts, in_answers }
        };
        let of = |kind: Kind, action| pattern(kind.name(), Detector::of(kind), action);
        let mut all =
            vec![of(Kind::Card, Action::Mask), of(Kind::Email, Action::Redact), of(Kind::ApiKey, Action::Redact)];
        if let Some(expression) = expression {
            let detector = Detector::of_expression(expression).unwrap();
            all.push(pattern("own", detector, Action::Redact));
        }
        Patterns { all, window, shadow: None }
    }

    const TEXT: &str = "Pay with 4111 1111 1111 1111 or ask jane@example.com; the password is hunter2hunter2x, see [card-1] and order 4711. Ünd Ende.";
    const EXPECTED: &str =
        "Pay with [card] or ask [email]; the [apiKey], see 5500000000000004 and order 4711. Ünd Ende.";

    fn things(all: &[(&str, &str)]) -> Masked {
        let things = all.iter().map(|(name, thing)| ((*name).to_owned(), (*thing).to_owned()));
        Masked { things: things.collect(), ..Masked::default() }
    }

    fn masked() -> Masked {
        things(&[("[card-1]", "5500000000000004")])
    }

    #[test]
    fn a_text_in_parts_shows_no_more_than_the_whole_text_and_not_too_late() {
        for (window, expression) in [(512, None), (64, None), (512, Some("order \\d+")), (64, Some("order \\d+"))] {
            let patterns = patterns(window, expression);
            let expected =
                if expression.is_some() { EXPECTED.replace("order 4711", "[own]") } else { EXPECTED.to_owned() };
            assert_eq!(patterns.of_answer(TEXT, &masked()).unwrap().unwrap(), expected);
            for size in 1..40 {
                let (mut flowing, mut out, mut pending) = (Flowing::default(), String::new(), 0);
                let mut rest = TEXT;
                while !rest.is_empty() {
                    let (part, behind) = rest.split_at(rest.ceil_char_boundary(size.min(rest.len())));
                    rest = behind;
                    out.push_str(&flowing.push(part, false, &patterns, &masked()).unwrap());
                    pending = pending.max(flowing.held.len());
                }
                out.push_str(&flowing.push("", true, &patterns, &masked()).unwrap());
                // The words in front of a password may have passed before it came.
                let passed = ["password is [", "password is[", "password [", "password["];
                let same = passed.iter().fold(out, |out, passed| out.replace(passed, "["));
                assert_eq!(same, expected, "parts of {size}, window {window}");
                let found: Vec<u64> = patterns.all.iter().map(|pattern| pattern.in_answers.found.get()).collect();
                assert!(found.iter().all(|found| *found == size as u64 + 1), "parts of {size}: {found:?}");
                // And the thing that reaches into the window.
                assert!(pending <= window + 40 + size, "{pending} bytes were held back");
            }
        }
    }

    #[test]
    fn plain_words_wait_for_one_word_alone() {
        let (patterns, masked) = (patterns(512, None), Masked::default());
        let mut flowing = Flowing::default();
        assert_eq!(flowing.push("The answer is ", false, &patterns, &masked).unwrap(), "The answer is");
        assert_eq!(flowing.push("simple enough", false, &patterns, &masked).unwrap(), " simple");
        assert_eq!(flowing.push("", true, &patterns, &masked).unwrap(), " enough");
        assert!(flowing.is_empty());
    }

    #[test]
    fn what_has_no_end_passes_in_parts_that_show_nothing() {
        let patterns = patterns(64, Some("X+"));
        let (mut flowing, mut out) = (Flowing::default(), String::new());
        for _ in 0..100 {
            out.push_str(&flowing.push(&"X".repeat(50), false, &patterns, &Masked::default()).unwrap());
            assert!(flowing.held.len() <= 4 * 64 + 50);
        }
        out.push_str(&flowing.push(" end", true, &patterns, &Masked::default()).unwrap());
        assert!(!out.contains('X') && out.ends_with("[own] end"), "{out}");
        assert_eq!(patterns.all.last().unwrap().in_answers.found.get(), 1, "it is one thing");
    }

    #[test]
    fn a_masked_thing_has_one_name_and_comes_back() {
        let (patterns, mut masked) = (patterns(64, None), Masked::default());
        let text = "4111 1111 1111 1111, 5500000000000004, again 4111 1111 1111 1111";
        let shown = patterns.of_request(text, &mut masked).unwrap().unwrap();
        assert_eq!(shown, "[card-1], [card-2], again [card-1]");
        assert_eq!(
            masked.unmask("use [card-2], not [card-1] or [card-3]").unwrap(),
            "use 5500000000000004, not 4111 1111 1111 1111 or [card-3]"
        );
        assert_eq!(masked.unmask("nothing [here]"), None);
        // The name of a thing is not looked for in another thing.
        let tricky = things(&[("[a-1]", "[a-2]"), ("[a-2]", "x")]);
        assert_eq!(tricky.unmask("[a-1]").unwrap(), "[a-2]");
    }

    #[test]
    fn a_refusal_names_its_pattern_wherever_the_thing_stands() {
        let mut all = patterns(64, None);
        all.all[1].action = Action::Refuse;
        assert_eq!(all.of_request("to jane@example.com", &mut Masked::default()), Err(Refused("email".to_owned())));
        let (mut flowing, masked) = (Flowing::default(), Masked::default());
        flowing.push("to jane@exa", false, &all, &masked).unwrap();
        assert_eq!(flowing.push("mple.com ", false, &all, &masked), Err(Refused("email".to_owned())));
        let mut many = Masked::default();
        for n in 0..MAX_MASKED {
            many.name_of("card", &n.to_string()).unwrap();
        }
        assert_eq!(many.name_of("card", "7").as_deref(), Some("[card-8]"));
        assert_eq!(many.name_of("card", "new"), None);
    }
}
