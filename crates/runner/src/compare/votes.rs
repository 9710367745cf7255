//! Votes of a forced-choice study: a win rate with an exact interval.

use std::collections::BTreeMap;

use anyhow::{Context, Result, anyhow, ensure};
use serde::Serialize;
use statrs::distribution::{Beta, Binomial, ContinuousCDF, DiscreteCDF};

use crate::report::blind::Key;

/// First line of a file of votes.
const HEADER: &str = "study,pair,choice,seconds";

/// How often something happened, with what it says of the chance.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(crate) struct Rate {
    pub(crate) wins: u64,
    pub(crate) of: u64,
    pub(crate) rate: f64,
    /// Clopper and Pearson's interval (1934): it holds its level for every chance and number of votes.
    pub(crate) lo: f64,
    pub(crate) hi: f64,
    pub(crate) level: f64,
    /// Of the exact two-sided binomial test against a fair coin.
    pub(crate) p: f64,
}

impl Rate {
    pub(crate) fn new(wins: u64, of: u64, level: f64) -> Result<Rate> {
        ensure!(of > 0, "expected at least one vote");
        ensure!(level > 0.0 && level < 1.0, "--level {level}: expected a number between 0 and 1");
        let tail = (1.0 - level) / 2.0;
        let quantile = |successes: u64, failures: u64, p: f64| -> Result<f64> {
            Ok(Beta::new(successes as f64, failures as f64).map_err(|error| anyhow!("{error}"))?.inverse_cdf(p))
        };
        let lo = if wins == 0 { 0.0 } else { quantile(wins, of - wins + 1, tail)? };
        let hi = if wins == of { 1.0 } else { quantile(wins + 1, of - wins, 1.0 - tail)? };
        // A fair coin's distribution is symmetric: both tails are twice one.
        let fair = Binomial::new(0.5, of).map_err(|error| anyhow!("{error}"))?;
        let p = (2.0 * fair.cdf(wins.min(of - wins))).min(1.0);
        Ok(Rate { wins, of, rate: wins as f64 / of as f64, lo, hi, level, p })
    }
}

/// What came of a study.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Votes {
    pub(crate) study: String,
    pub(crate) question: String,
    pub(crate) model: String,
    pub(crate) scale: String,
    pub(crate) a: String,
    pub(crate) b: String,
    /// Wins of `a` among all votes.
    pub(crate) votes: Rate,
    /// Wins of `a` among the pairs that more than half of the voters agree on; pairs with as many votes on each side are left out.
    pub(crate) pairs: Option<Rate>,
    /// The share of votes for the left image, which is chance if sides do not matter.
    pub(crate) left: Rate,
    /// Wins of `a` by voter, under the names of their files.
    pub(crate) voters: BTreeMap<String, Rate>,
}

/// The choices in one file of votes, in the order of the pairs: whether the left image was chosen.
fn choices(text: &str, key: &Key) -> Result<Vec<bool>> {
    let mut lines = text.lines().map(str::trim_end).filter(|line| !line.is_empty());
    let header = lines.next().unwrap_or_default().trim_start_matches('\u{feff}');
    ensure!(header == HEADER, "line 1 is `{header}`, expected `{HEADER}`");
    let mut found: Vec<Option<bool>> = vec![None; key.pairs.len()];
    for (i, line) in lines.enumerate() {
        let at = || format!("line {}: `{line}`", i + 2);
        let cells: Vec<&str> = line.split(',').map(|cell| cell.trim().trim_matches('"')).collect();
        let [study, pair, choice, seconds] = cells[..] else {
            return Err(anyhow!("{}: expected four values", at()));
        };
        ensure!(study == key.study, "{}: it is of study {study}, expected {}", at(), key.study);
        let pair: usize = pair
            .parse()
            .ok()
            .filter(|pair| (1..=found.len()).contains(pair))
            .with_context(|| format!("{}: expected a pair from 1 to {}", at(), found.len()))?;
        ensure!(seconds.parse::<f64>().is_ok_and(|seconds| seconds >= 0.0), "{}: expected a number of seconds", at());
        let left = match choice {
            "left" => true,
            "right" => false,
            _ => return Err(anyhow!("{}: the choice is `{choice}`, expected left or right", at())),
        };
        ensure!(found[pair - 1].replace(left).is_none(), "{}: pair {pair} is there twice", at());
    }
    let missing = found.iter().position(Option::is_none);
    let all: Option<Vec<bool>> = found.into_iter().collect();
    all.with_context(|| format!("pair {} has no choice, expected one for each of the {} pairs", missing.unwrap_or(0) + 1, key.pairs.len()))
}

/// Counts the votes in some files, given by name and text.
pub(crate) fn count(key: &Key, files: &[(String, String)], level: f64) -> Result<Votes> {
    ensure!(!files.is_empty(), "expected at least one file of votes");
    let mut for_a = vec![0u64; key.pairs.len()];
    let (mut lefts, mut voters) = (0, BTreeMap::new());
    for (name, text) in files {
        let choices = choices(text, key).with_context(|| name.clone())?;
        let mut wins = 0;
        for ((left, pair), for_a) in choices.into_iter().zip(&key.pairs).zip(&mut for_a) {
            let won = u64::from(left == pair.a_is_left);
            (lefts, wins, *for_a) = (lefts + u64::from(left), wins + won, *for_a + won);
        }
        let rate = Rate::new(wins, key.pairs.len() as u64, level)?;
        ensure!(voters.insert(name.clone(), rate).is_none(), "{name} is there twice, expected a file of its own for every voter");
    }
    let (n, all) = (files.len() as u64, (files.len() * key.pairs.len()) as u64);
    let decided = for_a.iter().filter(|wins| 2 * **wins != n).count() as u64;
    let majorities = for_a.iter().filter(|wins| 2 * **wins > n).count() as u64;
    Ok(Votes {
        study: key.study.clone(),
        question: key.question.clone(),
        model: key.model.clone(),
        scale: key.scale.clone(),
        a: key.a.1.clone(),
        b: key.b.1.clone(),
        votes: Rate::new(for_a.iter().sum(), all, level)?,
        pairs: (decided > 0).then(|| Rate::new(majorities, decided, level)).transpose()?,
        left: Rate::new(lefts, all, level)?,
        voters,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::blind::Pair;

    /// By R's `binom.test`.
    #[test]
    fn intervals_are_clopper_and_pearsons() {
        for (wins, of, lo, hi, p) in [
            (7, 10, 0.3475471, 0.9332605, 0.34375),
            (0, 5, 0.0, 0.5218238, 0.0625),
            (60, 100, 0.4972092, 0.6967052, 0.0568879),
            (12, 12, 0.7353515, 1.0, 0.00048828125),
        ] {
            let found = Rate::new(wins, of, 0.95).unwrap();
            for (what, found, expected) in [("lo", found.lo, lo), ("hi", found.hi, hi), ("p", found.p, p)] {
                assert!((found - expected).abs() < 2e-6, "{wins} of {of}, {what}: {found}, expected {expected}");
            }
        }
        assert!(Rate::new(0, 0, 0.95).is_err() && Rate::new(1, 2, 1.0).is_err());
    }

    fn key() -> Key {
        let pair = |index: usize| Pair { index, prompt: format!("p{index}"), seed: index as u64, a_is_left: index.is_multiple_of(2) };
        let method = |name: &str| (name.to_owned(), name.to_uppercase());
        Key {
            study: "00ff".into(),
            question: "?".into(),
            model: "m".into(),
            scale: "4x".into(),
            a: method("a"),
            b: method("b"),
            pairs: (0..4).map(pair).collect(),
        }
    }

    fn file(sides: &str) -> String {
        let line = |(i, side): (usize, char)| format!("00ff,{},{},1.50\n", i + 1, if side == 'l' { "left" } else { "right" });
        format!("{HEADER}\n{}", sides.chars().enumerate().map(line).collect::<String>())
    }

    #[test]
    fn choices_become_votes_by_the_key() {
        let files = [("x".to_owned(), file("llrr")), ("y".to_owned(), file("lrlr"))];
        let votes = count(&key(), &files, 0.95).unwrap();
        // Sides of a: l, r, l, r. The first voter finds it in pairs 1 and 4, the second everywhere.
        assert_eq!((votes.votes.wins, votes.votes.of, votes.left.wins), (6, 8, 4));
        assert_eq!((votes.voters["x"].wins, votes.voters["y"].wins), (2, 4));
        let pairs = votes.pairs.unwrap();
        assert_eq!((pairs.wins, pairs.of), (2, 2), "two pairs are even");
    }

    #[test]
    fn faults_are_named() {
        let count = |text: &str| format!("{:#}", count(&key(), &[("votes.csv".to_owned(), text.to_owned())], 0.95).unwrap_err());
        for (text, fragments) in [
            (file("lll"), &["votes.csv: pair 4 has no choice"][..]),
            (file("llll").replace("00ff,2", "ff00,2"), &["line 3", "study ff00, expected 00ff"]),
            (file("llll").replace("00ff,2,left", "00ff,2,middle"), &["line 3", "`middle`, expected left or right"]),
            (file("llll").replace("00ff,2", "00ff,1"), &["line 3", "pair 1 is there twice"]),
            (file("llll").replace("00ff,4", "00ff,5"), &["expected a pair from 1 to 4"]),
            (file("llll").replace("1.50", "soon"), &["a number of seconds"]),
            ("a,b\n".to_owned(), &["line 1 is `a,b`, expected `study,pair"]),
        ] {
            let message = count(&text);
            assert!(fragments.iter().all(|fragment| message.contains(fragment)), "{message}");
        }
        let twice = [("v".to_owned(), file("llll")), ("v".to_owned(), file("llll"))];
        assert!(super::count(&key(), &twice, 0.95).unwrap_err().to_string().contains("v is there twice"));
    }
}
