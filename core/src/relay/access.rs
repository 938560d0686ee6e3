//! Who may lease what.

use std::collections::BTreeMap;
use std::num::{NonZeroU32, NonZeroU64};
use std::ops::RangeInclusive;

use serde::{Deserialize, Serialize};

use crate::control::{Kind, RefusalCode};
use crate::identity::PublicKey;
use crate::names::LabelPattern;

/// Which keys a relay serves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Access {
    /// Every key that completes a handshake.
    Open,
    /// The keys with a grant.
    Granted(Vec<Grant>),
}

/// What one key may lease. An empty list allows everything of its sort.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Grant {
    /// The agent's public key.
    pub key: PublicKey,
    /// Which names it may ask for. Names derived from its key are always allowed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub names: Vec<LabelPattern>,
    /// Which ports it may ask for. Ports that the relay picks are always allowed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<RangeInclusive<u16>>,
    /// Which kinds of service it may offer.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub kinds: Vec<Kind>,
    /// The most connections at a time, over all its leases. Visitors by UDP are none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub flows: Option<NonZeroU32>,
    /// The most bytes a second, both directions together, over all its leases.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate: Option<NonZeroU64>,
}

impl Grant {
    /// A grant of everything.
    #[must_use]
    pub fn all(key: PublicKey) -> Self {
        Self {
            key,
            names: Vec::new(),
            ports: Vec::new(),
            kinds: Vec::new(),
            flows: None,
            rate: None,
        }
    }
}

/// A refusal: a code for programs and a sentence for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) code: RefusalCode,
    pub(crate) message: String,
}

impl Refusal {
    pub(crate) fn new(code: RefusalCode, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
        }
    }
}

impl Access {
    /// Whether the relay talks to this key at all.
    pub(crate) fn admits(&self, key: &PublicKey) -> Result<(), Refusal> {
        match self {
            Self::Open => Ok(()),
            Self::Granted(grants) if grants.iter().any(|grant| grant.key == *key) => Ok(()),
            Self::Granted(_) => Err(Refusal::new(
                RefusalCode::NotGranted,
                format!("the key {key} is not granted here: run `portal grant {key}` on the relay"),
            )),
        }
    }

    /// How many connections keys may have at a time. Keys without a bound are not there.
    pub(crate) fn flows(&self) -> BTreeMap<PublicKey, NonZeroU32> {
        self.bounds(|grant| grant.flows)
    }

    /// How many bytes a second keys may have carried. Keys without a bound are not there.
    pub(crate) fn rates(&self) -> BTreeMap<PublicKey, NonZeroU64> {
        self.bounds(|grant| grant.rate)
    }

    /// The loosest of the bounds that a key's grants set: grants of one key add up.
    fn bounds<T: Ord + Copy>(&self, bound: impl Fn(&Grant) -> Option<T>) -> BTreeMap<PublicKey, T> {
        let Self::Granted(grants) = self else {
            return BTreeMap::new();
        };
        let mut loosest: BTreeMap<PublicKey, Option<T>> = BTreeMap::new();
        for grant in grants {
            let new = bound(grant);
            let of_key = loosest.entry(grant.key).or_insert(new);
            *of_key = of_key.zip(new).map(|(one, other)| one.max(other));
        }
        loosest
            .into_iter()
            .filter_map(|(key, bound)| Some((key, bound?)))
            .collect()
    }

    /// Whether the key may have a lease of this kind, with the name or port it asks for.
    pub(crate) fn allows(
        &self,
        key: &PublicKey,
        kind: Kind,
        name: Option<&str>,
        port: Option<u16>,
    ) -> Result<(), Refusal> {
        self.admits(key)?;
        let Self::Granted(grants) = self else {
            return Ok(());
        };
        let mut lacking = String::new();
        for grant in grants.iter().filter(|grant| grant.key == *key) {
            if !grant.kinds.is_empty() && !grant.kinds.contains(&kind) {
                lacking = format!("the kind {kind}");
            } else if let Some(name) = name
                && !grant.names.is_empty()
                && !grant.names.iter().any(|pattern| pattern.matches(name))
            {
                lacking = format!("the name {name}");
            } else if let Some(port) = port
                && !grant.ports.is_empty()
                && !grant.ports.iter().any(|range| range.contains(&port))
            {
                lacking = format!("port {port}");
            } else {
                return Ok(());
            }
        }
        Err(Refusal::new(
            RefusalCode::NotAllowed,
            format!("the grant of the key {key} does not cover {lacking}: ask the relay's operator to widen it"),
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_grant_covers_what_it_names_and_empty_lists_everything() {
        let (key, other) = (PublicKey::from_bytes([1; 32]), PublicKey::from_bytes([2; 32]));
        assert_eq!(Access::Open.allows(&key, Kind::Tcp, None, Some(1)), Ok(()));
        let narrow = Grant {
            key,
            names: vec!["blog-*".parse().unwrap()],
            ports: vec![100..=200],
            kinds: vec![Kind::Http, Kind::Tcp],
            ..Grant::all(key)
        };
        let access = Access::Granted(vec![narrow.clone()]);
        let code = |result: Result<(), Refusal>| result.map_err(|refusal| refusal.code);
        assert_eq!(code(access.admits(&other)), Err(RefusalCode::NotGranted));
        assert_eq!(code(access.allows(&key, Kind::Http, Some("blog-2"), None)), Ok(()));
        assert_eq!(
            code(access.allows(&key, Kind::Http, Some("shop"), None)),
            Err(RefusalCode::NotAllowed)
        );
        assert_eq!(code(access.allows(&key, Kind::Tcp, None, Some(150))), Ok(()));
        assert_eq!(
            code(access.allows(&key, Kind::Tcp, None, Some(250))),
            Err(RefusalCode::NotAllowed)
        );
        assert_eq!(
            code(access.allows(&key, Kind::Udp, None, None)),
            Err(RefusalCode::NotAllowed)
        );
        let wide = Access::Granted(vec![narrow, Grant::all(key)]);
        assert_eq!(
            code(wide.allows(&key, Kind::Udp, None, Some(1))),
            Ok(()),
            "grants of one key add up"
        );
        let bounded = |flows| Grant {
            flows: NonZeroU32::new(flows),
            ..Grant::all(other)
        };
        let flows = |grants| Access::Granted(grants).flows().get(&other).map(|flows| flows.get());
        assert_eq!(flows(vec![bounded(3), bounded(7)]), Some(7));
        assert_eq!(flows(vec![bounded(3), Grant::all(other)]), None);
        assert_eq!(flows(vec![Grant::all(other), bounded(3)]), None);
        let refusal = access.admits(&other).unwrap_err();
        assert!(
            refusal.message.contains(&format!("portal grant {other}")),
            "{}",
            refusal.message
        );
    }
}
