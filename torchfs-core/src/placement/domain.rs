//! Where a node stands, as levels from wide to narrow: `rack=r1,host=h1`.

use crate::error::{Error, Kind, Result};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// The levels a failure domain may name, from wide to narrow.
pub const LEVELS: [&str; 6] = ["region", "zone", "room", "row", "rack", "host"];

/// A node's place: at most one value per level of [`LEVELS`], kept from wide to narrow. May be empty.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct FailureDomain(Vec<(String, String)>);

impl FailureDomain {
    /// Its value at a level.
    #[must_use]
    pub fn at(&self, level: &str) -> Option<&str> {
        self.0.iter().find(|(name, _)| name == level).map(|(_, value)| value.as_str())
    }

    /// Its levels and values from wide to narrow.
    pub fn levels(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(level, value)| (level.as_str(), value.as_str()))
    }
}

impl fmt::Display for FailureDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, (level, value)) in self.0.iter().enumerate() {
            write!(f, "{}{level}={value}", if number > 0 { "," } else { "" })?;
        }
        Ok(())
    }
}

impl FromStr for FailureDomain {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let mut levels = Vec::new();
        for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
            let known = part.split_once('=').filter(|(level, value)| LEVELS.contains(level) && !value.is_empty());
            let Some((level, value)) = known else {
                let message =
                    format!("'{part}' is no failure domain: write LEVEL=VALUE with one of {}", LEVELS.join(", "));
                return Err(Error::new(Kind::InvalidInput, message));
            };
            if levels.iter().any(|(other, _)| other == level) {
                return Err(Error::new(Kind::InvalidInput, format!("failure domain names {level} twice")));
            }
            levels.push((level.to_owned(), value.to_owned()));
        }
        levels.sort_by_key(|(level, _)| LEVELS.iter().position(|known| known == level));
        Ok(FailureDomain(levels))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_are_kept_from_wide_to_narrow() {
        let domain: FailureDomain = "host=h1,rack=r1".parse().expect("parses");
        assert_eq!(domain.to_string(), "rack=r1,host=h1");
        assert_eq!(domain.at("host"), Some("h1"));
        for bad in ["shelf=1", "host", "host=", "host=a,host=b"] {
            assert_eq!(bad.parse::<FailureDomain>().expect_err(bad).kind(), Kind::InvalidInput);
        }
        assert_eq!("".parse::<FailureDomain>().expect("parses"), FailureDomain::default());
    }
}
