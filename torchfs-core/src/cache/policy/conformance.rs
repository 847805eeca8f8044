//! What every [`EvictionPolicy`] must do, checked from outside. Call [`run`] in a test of each implementation.

use super::{CacheEvent, EvictionPolicy, Plan};
use crate::cache::CacheKey;
use crate::ids::{InodeId, Version};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::collections::BTreeSet;

/// Checks the contract over many short histories.
///
/// # Panics
/// If the policy breaks it.
pub fn run(new: &dyn Fn() -> Box<dyn EvictionPolicy>) {
    knows_only_what_was_added(new().as_mut());
    for seed in 0..200 {
        let victims = history(new().as_mut(), seed);
        assert_eq!(victims, history(new().as_mut(), seed), "the same events led to other victims");
    }
}

fn key(number: u64) -> CacheKey {
    CacheKey { ino: InodeId(number), version: Version(1) }
}

fn knows_only_what_was_added(policy: &mut dyn EvictionPolicy) {
    assert_eq!(policy.victim(&|_| false), None, "nothing was added");
    policy.note(CacheEvent::Used(key(9)));
    policy.note(CacheEvent::Planned(key(9), Plan::At(3)));
    policy.note(CacheEvent::Removed(key(9)));
    assert_eq!(policy.victim(&|_| false), None, "it was never added");
}

/// A random history; at each step the victim is checked. Answers the victims, for comparison.
fn history(policy: &mut dyn EvictionPolicy, seed: u64) -> Vec<Option<CacheKey>> {
    let mut random = StdRng::seed_from_u64(seed);
    let (mut held, mut pinned, mut victims) = (BTreeSet::new(), BTreeSet::new(), Vec::new());
    for step in 0..300 {
        let key = key(random.random_range(0..20));
        match random.random_range(0..6) {
            0 | 1 if held.insert(key) => policy.note(CacheEvent::Added(key)),
            // Places are of one entry each.
            2 => policy.note(CacheEvent::Planned(key, Plan::At(step * 20 + key.ino.0))),
            3 => policy.note(CacheEvent::Planned(key, [Plan::Read, Plan::Unknown][random.random_range(0..2)])),
            4 if pinned.remove(&key) || pinned.insert(key) => {}
            5 if held.len() > 12 => remove(policy, &mut held, &pinned),
            _ => policy.note(CacheEvent::Used(key)),
        }
        let victim = policy.victim(&|key| pinned.contains(&key));
        let valid = |victim: &CacheKey| held.contains(victim) && !pinned.contains(victim);
        assert!(victim.as_ref().is_none_or(valid), "{victim:?} is not there, or pinned");
        assert_eq!(
            victim.is_some(),
            held.difference(&pinned).next().is_some(),
            "there is a victim whenever one exists"
        );
        let candidates: Vec<CacheKey> = policy.candidates().collect();
        assert_eq!(candidates.len(), held.len(), "each entry is a candidate once");
        assert_eq!(candidates.into_iter().collect::<BTreeSet<_>>(), held, "the candidates are what is there");
        victims.push(victim);
    }
    victims
}

fn remove(policy: &mut dyn EvictionPolicy, held: &mut BTreeSet<CacheKey>, pinned: &BTreeSet<CacheKey>) {
    if let Some(victim) = policy.victim(&|key| pinned.contains(&key)) {
        policy.note(CacheEvent::Removed(victim));
        held.remove(&victim);
        assert_ne!(policy.victim(&|key| pinned.contains(&key)), Some(victim), "it was removed");
    }
}
