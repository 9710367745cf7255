//! The loop.

use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use cpu_time::ThreadTime;

use crate::targets::Target;

/// Inputs of which one is kept for its outcome.
const MOST_KEPT: usize = 4096;

/// An input that must not do what it did.
///
/// Example: [`Loop`].
#[derive(Debug, Clone)]
pub struct Found {
    /// The input.
    pub input: Vec<u8>,
    /// What it did.
    pub problem: String,
}

/// A loop over one target.
///
/// ```
/// use std::time::Duration;
///
/// use scalebench_fuzz::{Found, Loop, TARGETS, Target};
/// let npz: Target = *TARGETS.iter().find(|target| target.name == "npz").expect("a reader of npz files");
/// // Inputs of at most 4 KiB, each of them read within ten seconds.
/// let mut turns = Loop::new(npz, 1, 1 << 12, Duration::from_secs(10));
/// turns.seeds()?;
/// assert!(turns.accepted > 0);
/// for _ in 0..10 {
///     turns.step(&mut |_input| ())?;
/// }
/// // An input whose outcome is that of none before is kept; the same again is not.
/// turns.one(b"no archive")?;
/// assert!(!turns.one(b"no archive")? && turns.outcomes() > 1);
/// # Ok::<(), Found>(())
/// ```
#[derive(Debug)]
pub struct Loop {
    target: Target,
    random: Random,
    inputs: Vec<Vec<u8>>,
    outcomes: HashSet<u64>,
    largest: usize,
    slowest: Duration,
    /// Executions so far.
    pub executions: u64,
    /// Of which the reader took as valid.
    pub accepted: u64,
    /// Processor time of the longest one.
    pub longest: Duration,
}

impl Loop {
    /// Begins with the target's seeds, which are run first. Inputs grow to at most `largest` bytes; one that takes longer than
    /// `slowest` is a finding.
    /// Example: [`Loop`].
    pub fn new(target: Target, seed: u64, largest: usize, slowest: Duration) -> Self {
        let inputs = (target.seeds)();
        assert!(!inputs.is_empty(), "{}: no seeds", target.name);
        let random = Random(seed ^ 0x9e37_79b9_7f4a_7c15);
        Self { target, random, inputs, outcomes: HashSet::new(), largest, slowest, executions: 0, accepted: 0, longest: Duration::ZERO }
    }

    /// Different outcomes so far: what readers say, without numbers and names.
    /// Example: [`Loop`].
    pub fn outcomes(&self) -> usize {
        self.outcomes.len()
    }

    /// Runs one input; what it must not do, if it does.
    /// Example: [`Loop`].
    pub fn one(&mut self, input: &[u8]) -> Result<bool, Found> {
        // Of the processor: a busy machine is no fault of the reader.
        let start = ThreadTime::now();
        let outcome = catch_unwind(AssertUnwindSafe(|| (self.target.run)(input)));
        let took = start.elapsed();
        self.executions += 1;
        self.longest = self.longest.max(took);
        let found = |problem: String| Found { input: input.to_owned(), problem };
        let outcome = outcome.map_err(|panic| {
            let text = panic.downcast_ref::<String>().cloned().or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
            found(format!("panic: {}", text.unwrap_or_default()))
        })?;
        if took > self.slowest {
            return Err(found(format!("took {took:?}")));
        }
        self.accepted += u64::from(outcome.is_ok());
        Ok(self.outcomes.insert(signature(&outcome)))
    }

    /// The seeds, as they are.
    /// Example: [`Loop`].
    pub fn seeds(&mut self) -> Result<(), Found> {
        self.inputs.clone().iter().try_for_each(|input| self.one(input).map(drop))
    }

    /// Changes an input and runs it.
    /// Example: [`Loop`].
    pub fn step(&mut self, shown: &mut dyn FnMut(&[u8])) -> Result<(), Found> {
        let mut input = self.inputs[self.random.below(self.inputs.len())].clone();
        for _ in 0..1 + self.random.below(4) {
            self.change(&mut input);
        }
        input.truncate(self.largest);
        shown(&input);
        if self.one(&input)? && self.inputs.len() < MOST_KEPT {
            self.inputs.push(input);
        }
        Ok(())
    }

    fn change(&mut self, input: &mut Vec<u8>) {
        let random = &mut self.random;
        let at = random.below(input.len() + 1);
        let span = (1 + random.below(16)).min(input.len() - at);
        match random.below(11) {
            0 if at < input.len() => input[at] ^= 1 << random.below(8),
            1 if at < input.len() => input[at] = random.next() as u8,
            2 if at < input.len() => input[at] = [0, 1, 0x7f, 0x80, 0xff, b'0', b'9', b'"', b'\n', b' '][random.below(10)],
            3 => drop(input.drain(at..at + span)),
            4 => input.truncate(at),
            5 => {
                let part = input[at..at + span].to_vec();
                let to = random.below(input.len() + 1);
                input.splice(to..to, part);
            }
            6 | 7 if !self.target.words.is_empty() => {
                let word = self.target.words[random.below(self.target.words.len())];
                let over = if random.below(2) == 0 { 0 } else { word.len().min(input.len() - at) };
                input.splice(at..at + over, word.iter().copied());
            }
            8 => number(random, input, at),
            9 => {
                let other = &self.inputs[random.below(self.inputs.len())];
                let from = random.below(other.len() + 1);
                let part = other[from..].to_vec();
                input.truncate(at);
                input.extend(part);
            }
            _ => {
                let bytes: Vec<u8> = (0..1 + random.below(8)).map(|_| random.next() as u8).collect();
                input.splice(at..at, bytes);
            }
        }
    }
}

/// Replaces the decimal digits around a place.
fn number(random: &mut Random, input: &mut Vec<u8>, at: usize) {
    let is_digit = |byte: &u8| byte.is_ascii_digit();
    let Some(first) = input[at..].iter().position(is_digit).map(|i| at + i) else { return };
    let end = input[first..].iter().position(|byte| !is_digit(byte)).map_or(input.len(), |i| first + i);
    let with: &[u8] = [
        &b"0"[..],
        b"-1",
        b"1",
        b"2",
        b"255",
        b"256",
        b"65536",
        b"4294967295",
        b"4294967296",
        b"1000000000000",
        b"18446744073709551615",
        b"1e308",
        b"0.5",
    ][random.below(13)];
    input.splice(first..end, with.iter().copied());
}

/// How what an outcome says begins, without paths, numbers and what is quoted: those are the input's own words.
fn signature(outcome: &Result<(), String>) -> u64 {
    let mut hasher = DefaultHasher::new();
    let message = outcome.as_ref().err().map_or("", String::as_str);
    // Every second part of a text that is cut at its quotes is quoted.
    let plain = message.split(['`', '"']).step_by(2).flat_map(str::split_whitespace);
    let own = plain.filter(|word| word.chars().all(|c| c.is_ascii_alphabetic() || ",.:;'()-_".contains(c)));
    own.take(8).for_each(|word| word.hash(&mut hasher));
    hasher.finish()
}

/// splitmix64, <https://prng.di.unimi.it/splitmix64.c>.
#[derive(Debug)]
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        ((u128::from(self.next()) * n as u128) >> 64) as usize
    }
}
