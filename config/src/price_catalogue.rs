//! Catalogue of prices that ships with the program: `config/prices.yaml`, compiled in. It is read once, when a configuration first
//! uses it.

use std::collections::HashMap;
use std::sync::LazyLock;

use serde::Deserialize;

use crate::schema::Price;
use crate::tree;
use crate::values::Date;

/// Text of the catalogue.
const TEXT: &str = include_str!("../prices.yaml");

/// Models of one price, with the page that has it.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CataloguedPrice {
    /// Names of the models, exactly.
    models: Vec<String>,
    price: Figures,
    /// URL of the page that has the figures.
    pub source: String,
    /// Day on which the page was read, or that of its figures.
    pub read: Date,
}

/// Figures of [`Price`], in US dollars for a million tokens.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Figures {
    input: f64,
    cached_input: Option<f64>,
    cache_write: Option<f64>,
    cache_write_1h: Option<f64>,
    output: f64,
}

impl CataloguedPrice {
    /// Price of each of the models.
    pub fn prices(&self) -> impl Iterator<Item = Price> {
        let Figures { input, cached_input, cache_write, cache_write_1h, output } = self.price;
        let price = move |model: &String| Price {
            model: model.clone(),
            input,
            cached_input,
            cache_write,
            cache_write_1h,
            output,
        };
        self.models.iter().map(price)
    }
}

static CATALOGUE: LazyLock<Result<Vec<CataloguedPrice>, String>> = LazyLock::new(read);

fn read() -> Result<Vec<CataloguedPrice>, String> {
    let tree = tree::parse(TEXT).map_err(|e| format!("prices.yaml: {e:?}"))?;
    serde_json::from_value(tree.to_json()).map_err(|e| format!("prices.yaml: {e}"))
}

/// Entries of the catalogue, in their order.
///
/// # Errors
///
/// The text of the catalogue is wrong, which a test of this crate would have found.
pub fn catalogued_prices() -> Result<&'static [CataloguedPrice], String> {
    CATALOGUE.as_ref().map(Vec::as_slice).map_err(Clone::clone)
}

/// Prices of the catalogue, by the names of their models in small letters.
///
/// # Errors
///
/// The text of the catalogue is wrong, which a test of this crate would have found.
pub fn price_catalogue() -> Result<HashMap<String, Price>, String> {
    Ok(catalogued_prices()?
        .iter()
        .flat_map(CataloguedPrice::prices)
        .map(|price| (price.model.to_lowercase(), price))
        .collect())
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_price_has_a_source_and_a_day_and_no_model_has_two() {
        let all = catalogued_prices().unwrap();
        assert!(all.len() > 20, "{}", all.len());
        let mut seen = HashSet::new();
        for entry in all {
            assert!(url::Url::parse(&entry.source).is_ok_and(|url| url.scheme() == "https"), "{entry:?}");
            assert!(entry.read.unix_seconds() > 1_700_000_000, "{entry:?}");
            for price in entry.prices() {
                assert!(seen.insert(price.model.to_lowercase()), "{} is there twice", price.model);
                assert!(!price.model.contains('*') && price.model.trim() == price.model, "{}", price.model);
                let least = [price.cached_input, price.cache_write, price.cache_write_1h];
                assert!(price.input > 0.0 && price.output >= 0.0 && least.iter().flatten().all(|p| *p > 0.0));
                assert!(price.cached_input.is_none_or(|cached| cached <= price.input), "{}", price.model);
                assert!(price.cache_write.is_none_or(|write| write >= price.input), "{}", price.model);
                assert!(price.cache_write_1h.is_none_or(|hour| Some(hour) >= price.cache_write), "{}", price.model);
            }
        }
        assert_eq!(price_catalogue().unwrap().len(), seen.len());
    }
}
