//! Prices of tokens. One dollar for a million tokens is a thousand billionths of a dollar for a token, so costs are
//! whole numbers except for the last rounding.

use std::borrow::Cow;
use std::collections::HashMap;

use spillway_config::ModelPattern;
use spillway_config::schema::Price;
use spillway_filter::{Pricing, TokenUse};

use super::estimate::{Estimate, Used};

/// Billionths of a dollar for one token, at one dollar for a million tokens.
const NANOS: f64 = 1000.0;

/// Table of prices.
#[derive(Debug, Default)]
pub struct Prices {
    /// Entries of the configuration, in their order.
    entries: Vec<(String, ModelPattern, Price)>,
    /// Prices of the catalogue, by the names of their models in small letters.
    catalogue: HashMap<String, Price>,
}

impl Prices {
    /// Compiles the prices of the configuration. Models that none of them fits have the price of the `catalogue`.
    pub fn new(written: &[Price], catalogue: HashMap<String, Price>) -> Self {
        let pattern = |price: &Price| ModelPattern::new(&price.model).in_small_letters();
        let entries = written.iter().map(|price| (price.model.clone(), pattern(price), price.clone())).collect();
        Self { entries, catalogue }
    }

    /// True if no model has a price.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty() && self.catalogue.is_empty()
    }

    fn find(&self, model: Option<&str>) -> Option<&Price> {
        // A server that takes a name in any letters gets no other price by them.
        let model = model.map(in_small_letters)?;
        let entry = self.entries.iter().find(|(_, pattern, _)| pattern.matches(&model));
        entry.map(|(_, _, price)| price).or_else(|| self.catalogue.get(&*model))
    }

    /// Price of an answer: of the model that answered, else of the one asked for. A built-in model has none unless an entry of
    /// the configuration has exactly its name.
    fn price_of(&self, answered: Option<&str>, asked: Option<&str>, is_built_in: bool) -> Option<&Price> {
        if is_built_in {
            self.entries.iter().find(|(name, _, _)| answered == Some(name.as_str())).map(|(_, _, price)| price)
        } else {
            self.find(answered).or_else(|| self.find(asked))
        }
    }

    /// Cost of an answer, in billionths of a US dollar.
    pub fn of(&self, used: Used, answered: Option<&str>, asked: Option<&str>, is_built_in: bool) -> u64 {
        self.price_of(answered, asked, is_built_in).map_or(0, |price| cost(price, used))
    }

    /// Name of the entry by which an answer costs what it does, as `prices` or the catalogue has it: a caller can make none.
    pub fn name_of(&self, answered: Option<&str>, asked: Option<&str>, is_built_in: bool) -> Option<&str> {
        self.price_of(answered, asked, is_built_in).map(|price| price.model.as_str())
    }

    /// Expected cost of a request.
    pub fn expected(&self, estimate: Estimate, asked: Option<&str>) -> u64 {
        let used = Used { input: estimate.input, output: estimate.output, ..Used::default() };
        self.find(asked).map_or(0, |price| cost(price, used))
    }
}

impl Pricing for Prices {
    fn nanos(&self, tokens: TokenUse, answered: Option<&str>, asked: Option<&str>, is_built_in: bool) -> u64 {
        let TokenUse { input, cached, cache_written, cache_written_1h, output } = tokens;
        let used = Used { input, cached, cache_written, cache_written_1h, output, nanos: 0 };
        self.of(used, answered, asked, is_built_in)
    }
}

fn in_small_letters(name: &str) -> Cow<'_, str> {
    if name.chars().any(char::is_uppercase) { name.to_lowercase().into() } else { name.into() }
}

#[allow(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "prices are above zero; what is beyond 2^53 tokens is beyond any budget too"
)]
fn cost(price: &Price, used: Used) -> u64 {
    let cached = used.cached.min(used.input);
    let written = used.cache_written.min(used.input - cached);
    let for_an_hour = used.cache_written_1h.min(written);
    let write = price.cache_write.unwrap_or(price.input);
    let nanos = price.input * (used.input - cached - written) as f64
        + price.cached_input.unwrap_or(price.input) * cached as f64
        + write * (written - for_an_hour) as f64
        + price.cache_write_1h.unwrap_or(write) * for_an_hour as f64
        + price.output * used.output as f64;
    (nanos * NANOS).ceil() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prices() -> Prices {
        let price = |model: &str, input, cached_input, cache_write, output| Price {
            model: model.into(),
            input,
            cached_input,
            cache_write,
            cache_write_1h: cache_write.map(|_| 6.0),
            output,
        };
        Prices::new(
            &[
                price("gpt-4o-mini", 0.15, Some(0.075), None, 0.60),
                price("gpt-*", 2.5, None, None, 10.0),
                price("claude-*", 3.0, Some(0.3), Some(3.75), 15.0),
                price("*", 1.0, None, None, 1.0),
            ],
            HashMap::new(),
        )
    }

    #[test]
    fn the_catalogue_comes_behind_the_entries_and_prices_no_model_of_ours() {
        let price = |model: &str, input| Price {
            model: model.into(),
            input,
            cached_input: None,
            cache_write: None,
            cache_write_1h: None,
            output: 1.0,
        };
        let catalogue = HashMap::from(["gpt-x", "mini"].map(|name| (name.to_owned(), price(name, 5.0))));
        let prices = Prices::new(&[price("gpt-*", 2.0)], catalogue);
        let cost = |model, is_built_in| {
            let used = Used { input: 1_000_000, ..Used::default() };
            prices.of(used, Some(model), None, is_built_in)
        };
        assert_eq!(cost("GPT-X", false), 2_000_000_000, "the file overrides");
        assert_eq!(cost("Mini", false), 5_000_000_000);
        assert_eq!((cost("mini-2", false), cost("mini", true)), (0, 0));
        let name = |model| prices.name_of(Some(model), None, false);
        assert_eq!(
            (name("gpt-whatever-a-caller-sends"), name("MINI"), name("other")),
            (Some("gpt-*"), Some("mini"), None)
        );
        assert!(Prices::default().is_empty() && !prices.is_empty());
    }

    #[test]
    fn the_first_entry_that_fits_says_what_tokens_cost() {
        let used = Used { input: 1_000_000, cached: 400_000, output: 1_000_000, ..Used::default() };
        let cost = |answered, asked, is_built_in| prices().of(used, answered, asked, is_built_in);
        assert_eq!(cost(Some("gpt-4o-mini"), None, false), 90_000_000 + 30_000_000 + 600_000_000);
        assert_eq!(cost(Some("gpt-4o"), Some("gpt-4o-mini"), false), 12_500_000_000, "the model that answered counts");
        assert_eq!(cost(None, Some("gpt-4o-mini"), false), 720_000_000);
        assert_eq!(cost(Some("smollm2"), Some("gpt-4o"), true), 0, "a built-in model is free unless it is named");
        assert_eq!(cost(Some("smollm2"), None, false), 2_000_000_000);
    }

    #[test]
    fn tokens_written_to_a_cache_cost_their_own_price_once() {
        let cost = |input, cached, cache_written, model| {
            prices().of(Used { input, cached, cache_written, ..Used::default() }, Some(model), None, false)
        };
        assert_eq!(cost(1000, 600, 300, "claude-x"), 100 * 3000 + 600 * 300 + 300 * 3750);
        assert_eq!(cost(1000, 600, 300, "gpt-4o"), 1000 * 2500, "as input where there is no price of its own");
        assert_eq!(cost(10, 8, 9, "claude-x"), 8 * 300 + 2 * 3750, "no more tokens are paid than were read");
        let for_an_hour = |cache_written_1h, model| {
            let used = Used { input: 1000, cache_written: 300, cache_written_1h, ..Used::default() };
            prices().of(used, Some(model), None, false)
        };
        assert_eq!(for_an_hour(200, "claude-x"), 700 * 3000 + 100 * 3750 + 200 * 6000);
        assert_eq!(for_an_hour(999, "claude-x"), 700 * 3000 + 300 * 6000, "no more than were written");
        assert_eq!(for_an_hour(200, "gpt-4o"), 1000 * 2500);
    }

    #[test]
    fn part_of_a_billionth_is_not_lost() {
        let used = Used { input: 1, cached: 1, ..Used::default() };
        assert_eq!(prices().of(used, Some("gpt-4o-mini"), None, false), 75);
        assert_eq!(prices().expected(Estimate { input: 4, output: 0 }, Some("gpt-4o-mini")), 600);
    }
}
