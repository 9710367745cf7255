//! Protocols: what a set of numbers was measured with, as data.
//!
//! Papers of this field compare under one name ("FID") what differs in references, crops, resizing and number of
//! images. A protocol is a YAML file that settles all of it and names its source; numbers of different protocols
//! never share a column. The built-in ones are in `experiments/protocols`.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, anyhow, bail, ensure};
use scalebench_metrics::{Aspect, Crops, Extractor, Jackknife, Metric, Position, Preprocess, Profile, ReferenceBlocks, Scales, VideoClip};
use serde::{Deserialize, Serialize};

use crate::experiment::yaml::{self, did_you_mean, is_file_name};

/// What is measured, on what, against what.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Protocol {
    pub(crate) name: String,
    pub(crate) title: String,
    /// Where it comes from.
    pub(crate) source: String,
    /// What the source leaves open, and what this file chose.
    #[serde(default)]
    pub(crate) uncertain: Vec<String>,
    /// Images per cell that the source used: up to a size, `<=WxH` (by area, the first that fits), and `default`.
    #[serde(default)]
    pub(crate) n_images: BTreeMap<String, usize>,
    /// Table of published numbers, `datasets/published/NAME.csv`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) published: Option<String>,
    pub(crate) compare: Vec<Comparison>,
}

/// One comparison: its metrics become the columns `METRIC_ID`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Comparison {
    pub(crate) id: String,
    pub(crate) against: Against,
    #[serde(default)]
    pub(crate) network: Network,
    pub(crate) metrics: Vec<Metric>,
    /// From image to network input; default: the network's usual one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) preprocess: Option<Profile>,
    #[serde(default, skip_serializing_if = "is_default")]
    pub(crate) aspect: Aspect,
    /// How the generated side is looked at.
    #[serde(default, skip_serializing_if = "is_default")]
    pub(crate) generated: Look,
    /// How the other side is looked at.
    #[serde(default, skip_serializing_if = "is_default")]
    pub(crate) other: Look,
    /// Which frames of videos are looked at; default: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) clip: Option<VideoClip>,
}

/// The other side.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Against {
    /// The experiment's reference images.
    Reference,
    /// Generations of the same prompts and seeds at the training size.
    Base,
    /// The prompts themselves.
    Prompts,
}

/// The network whose features are compared. The experiment says where its weights are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Network {
    #[default]
    Inception,
    Clip,
    Dinov2,
    /// None: the pixels themselves.
    Pixels,
    /// Of videos.
    I3d,
}

impl Network {
    /// What a loaded network is.
    pub(crate) fn of(extractor: &Extractor) -> Self {
        match () {
            () if extractor.clip().is_some() => Self::Clip,
            () if extractor.is_dinov2() => Self::Dinov2,
            () if extractor.is_pixels() => Self::Pixels,
            () if extractor.takes_videos() => Self::I3d,
            () => Self::Inception,
        }
    }

    /// The experiment's key with the path of the weights.
    pub(crate) fn key(self) -> &'static str {
        match self {
            Self::Inception => "extractor",
            Self::Clip => "clip",
            Self::Dinov2 => "dinov2",
            Self::Pixels => "pixels",
            Self::I3d => "i3d",
        }
    }

    fn profile(self) -> Profile {
        match self {
            Self::Inception | Self::Pixels => Profile::Clean,
            Self::Clip => Profile::Clip,
            Self::Dinov2 => Profile::DgmEval,
            Self::I3d => Profile::Lvdm,
        }
    }
}

/// How one side is looked at; the default is the whole image.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Look {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) jpeg_quality: Option<u8>,
    /// Luma in place of colours.
    #[serde(default, skip_serializing_if = "is_default")]
    pub(crate) grey: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) pre_resize: Option<Side>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) crops: Option<LookCrops>,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct LookCrops {
    pub(crate) count: u32,
    #[serde(default)]
    pub(crate) size: Side,
    #[serde(default)]
    pub(crate) position: Position,
    #[serde(default = "yes")]
    pub(crate) resize: bool,
    /// Of an image at which size.
    #[serde(default, skip_serializing_if = "is_default")]
    pub(crate) scales: Scales,
}

/// A length in pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged, expecting = "expected `base` (the model's training size), `half` (of the image's shorter side) or a number of pixels")]
pub(crate) enum Side {
    Named(NamedSide),
    Pixels(u32),
}

/// A length that depends on the model or on the image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum NamedSide {
    /// The smaller side of the model's training size.
    Base,
    /// Half of the image's shorter side.
    Half,
}

impl Default for Side {
    fn default() -> Self {
        Self::BASE
    }
}

fn yes() -> bool {
    true
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

impl Side {
    const BASE: Self = Self::Named(NamedSide::Base);

    /// For an image of (width, height) of a model trained at `base` pixels a side.
    fn pixels(self, base: u32, (width, height): (u32, u32)) -> u32 {
        match self {
            Self::Named(NamedSide::Base) => base,
            Self::Named(NamedSide::Half) => width.min(height) / 2,
            Self::Pixels(pixels) => pixels,
        }
    }
}

impl Comparison {
    fn profile(&self) -> Profile {
        let usual = match self.metrics.as_slice() {
            [Metric::Cmmd] => Profile::Cmmd,
            _ => self.network.profile(),
        };
        self.preprocess.unwrap_or(usual)
    }

    /// The whole of what happens to an image of `width` × `height` of a model trained at `base` pixels a side.
    fn preprocess(&self, look: &Look, seed: u64, base: u32, (width, height): (u32, u32)) -> Preprocess {
        let crops = look.crops.map(|crops| Crops {
            count: crops.count,
            size: crops.size.pixels(base, (width, height)),
            position: crops.position,
            // A grid has no seed; another number would only hide that two feature files are the same.
            seed: if crops.position == Position::Grid { 0 } else { seed },
            resize: crops.resize,
            scales: crops.scales,
        });
        Preprocess {
            profile: self.profile(),
            aspect: self.aspect,
            jpeg_quality: look.jpeg_quality,
            grey: look.grey,
            // What changes nothing is left out, so that its features are found again: a resize to the size that an
            // image has, and crops as large as the image.
            pre_resize: look.pre_resize.map(|side| side.pixels(base, (width, height))).filter(|side| (width, height) != (*side, *side)),
            crops: crops.filter(|crops| !(crops.resize && (width, height) == (crops.size, crops.size))),
            clip: self.clip,
        }
    }

    /// How intervals are made: base-resolution images of the same prompts leave with the images that they are compared with.
    pub(crate) fn jackknife(&self) -> Jackknife {
        let reference = if self.against == Against::Base { ReferenceBlocks::Shared } else { ReferenceBlocks::Fixed };
        Jackknife { reference, ..Jackknife::STANDARD }
    }

    /// Whether the model's training size has to be known.
    pub(crate) fn needs_base_size(&self) -> bool {
        let looks = [&self.generated, &self.other];
        looks.iter().any(|look| look.pre_resize == Some(Side::BASE) || look.crops.is_some_and(|crops| crops.size == Side::BASE))
    }

    /// For the generated side.
    pub(crate) fn generated(&self, seed: u64, base: u32, size: (u32, u32)) -> Preprocess {
        self.preprocess(&self.generated, seed, base, size)
    }

    /// For the other side.
    pub(crate) fn other(&self, seed: u64, base: u32, size: (u32, u32)) -> Preprocess {
        self.preprocess(&self.other, seed, base, size)
    }

    /// What the columns of this comparison mean, for a reader of the report.
    pub(crate) fn describe(&self) -> String {
        let side = |side: Side| match side {
            Side::Named(NamedSide::Base) => "base resolution".to_owned(),
            Side::Named(NamedSide::Half) => "half a side".to_owned(),
            Side::Pixels(n) => format!("{n} pixels"),
        };
        let look = |look: &Look| {
            let mut words = Vec::new();
            if let Some(quality) = look.jpeg_quality {
                words.push(format!("as JPEG of quality {quality}"));
            }
            if look.grey {
                words.push("in grey".to_owned());
            }
            if let Some(size) = look.pre_resize {
                words.push(format!("reduced to {}", side(size)));
            }
            if let Some(LookCrops { count, size, position, resize, scales }) = look.crops {
                let place = match position {
                    Position::Random => "random",
                    Position::Grid => "evenly spread",
                    Position::Shared => "shared",
                };
                let own = if resize { "" } else { ", not resized" };
                let reduced = if scales == Scales::Random { " of the image reduced by random factors" } else { "" };
                words.push(format!("{count} {place} crops of {} each{own}{reduced}", side(size)));
            }
            if words.is_empty() { "whole images".to_owned() } else { words.join(", ") }
        };
        let against = match self.against {
            Against::Reference => format!("against the reference ({})", look(&self.other)),
            Against::Base => format!("against base-resolution generations of the same prompts and seeds ({})", look(&self.other)),
            Against::Prompts => "against their prompts".to_owned(),
        };
        let preprocessing = if self.network == Network::Pixels { String::new() } else { format!(", preprocessing {}", self.profile()) };
        let clip = self.clip.map_or(String::new(), |clip| format!(", {clip} of every video"));
        format!("_{}: {} {against}{preprocessing}{clip}", self.id, look(&self.generated))
    }
}

/// A column of the results.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Score {
    pub(crate) metric: Metric,
    /// Index of the comparison.
    pub(crate) comparison: usize,
    pub(crate) column: String,
}

impl Protocol {
    /// The columns of the results, in order.
    pub(crate) fn scores(&self) -> Vec<Score> {
        let columns = self.compare.iter().enumerate().flat_map(|(i, comparison)| {
            let score =
                move |metric: &Metric| Score { metric: *metric, comparison: i, column: format!("{}_{}", metric.name(), comparison.id) };
            comparison.metrics.iter().map(score)
        });
        columns.collect()
    }

    /// Images per cell that the source used for images of a size.
    pub(crate) fn images_at(&self, width: u32, height: u32) -> Option<usize> {
        let pixels = u64::from(width) * u64::from(height);
        let mut limits: Vec<(u64, usize)> = self.n_images.iter().filter_map(|(key, n)| Some((area(key)?, *n))).collect();
        limits.sort_unstable();
        let fits = limits.into_iter().find(|(limit, _)| pixels <= *limit).map(|(_, n)| n);
        fits.or_else(|| self.n_images.get("default").copied())
    }

    /// Checks what types cannot say.
    fn check(&self) -> Result<()> {
        ensure!(!self.compare.is_empty(), "compare: expected at least one comparison");
        for (i, comparison) in self.compare.iter().enumerate() {
            let at = format!("compare[{i}]");
            let id = &comparison.id;
            ensure!(
                !id.is_empty() && id.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_'),
                "{at}.id: expected lower-case letters, digits and `_`, found `{id}`"
            );
            ensure!(self.compare[..i].iter().all(|other| other.id != *id), "{at}.id: `{id}` stands there twice");
            ensure!(!comparison.metrics.is_empty(), "{at}.metrics: expected at least one");
            for metric in &comparison.metrics {
                let text = *metric == Metric::ClipScore;
                ensure!(
                    text == (comparison.against == Against::Prompts),
                    "{at}.metrics: {} {} against prompts",
                    metric.name(),
                    if text { "is measured" } else { "cannot be measured" }
                );
                ensure!(!text || comparison.network == Network::Clip, "{at}.network: clip_score needs clip");
                let cmmd = *metric == Metric::Cmmd;
                ensure!(!cmmd || comparison.network == Network::Clip, "{at}.network: cmmd needs clip");
                let looked = comparison.metrics.len() == 1 || comparison.preprocess.is_some();
                ensure!(
                    !cmmd || looked,
                    "{at}.metrics: cmmd looks at images in a way of its own; expected a comparison for it alone, or preprocess"
                );
                ensure!(
                    metric.is_of_pixels() == (comparison.network == Network::Pixels),
                    "{at}.network: {} is {} pixels",
                    metric.name(),
                    if metric.is_of_pixels() { "of" } else { "of a network's features and not of" }
                );
                let parts = [&comparison.generated, &comparison.other].map(|look| look.crops.map_or(1, |crops| crops.count));
                ensure!(
                    *metric != Metric::Repetition || parts.iter().all(|n| *n > 1),
                    "{at}: repetition compares parts of an image, expected `crops` with a count above 1 in `generated` and `other`"
                );
                let of_videos = comparison.network == Network::I3d;
                let expected = if metric.is_of_videos() { "needs i3d" } else { "is one of images, i3d looks at videos" };
                ensure!(metric.is_of_videos() == of_videos, "{at}.network: {} {expected}", metric.name());
                let logits = *metric == Metric::InceptionScore;
                ensure!(!logits || comparison.network == Network::Inception, "{at}.network: is needs inception");
            }
            for (side, look) in [("generated", &comparison.generated), ("other", &comparison.other)] {
                let crops = look.crops.map(|crops| crops.count);
                ensure!(crops != Some(0), "{at}.{side}.crops.count: expected at least 1");
            }
            ensure!(comparison.clip.is_none() || comparison.network == Network::I3d, "{at}.clip: only videos, of network i3d, have frames");
            // Fails on what no size can mend; sizes are those of a model yet unknown.
            comparison.generated(0, 512, (1024, 1024)).validate().with_context(|| at.clone())?;
        }
        for key in self.n_images.keys() {
            ensure!(key == "default" || area(key).is_some(), "n_images: expected `<=WxH` or `default`, found `{key}`");
        }
        if let Some(table) = &self.published {
            ensure!(published_table(table).is_some(), "published: no table `{table}`, expected one of {}", table_names());
        }
        Ok(())
    }
}

/// The area in a key `<=WxH`.
fn area(key: &str) -> Option<u64> {
    let (width, height) = key.strip_prefix("<=")?.split_once('x')?;
    width.parse::<u64>().ok()?.checked_mul(height.parse().ok()?)
}

macro_rules! embedded {
    ($constant:ident, $folder:literal, $extension:literal, $doc:literal: $($name:literal),* $(,)?) => {
        #[doc = $doc]
        const $constant: &[(&str, &str)] = &[
            $(($name, include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../../", $folder, "/", $name, $extension)))),*
        ];
    };
}

embedded!(BUILTIN, "experiments/protocols", ".yaml", "Name and YAML of every built-in protocol.":
    "pocket",
    "pocket-texture",
    "scalecrafter",
    "fouriscale",
    "self-cascade",
    "demofusion",
    "accdiffusion",
    "fam",
    "lsrna",
    "freescale",
    "megafusion",
    "anyres-gan",
    "coco30k",
    "coco5k-mlperf",
    "video",
    "self-cascade-video",
    "freescale-video",
);

embedded!(PUBLISHED, "datasets/published", ".csv", "Name and CSV of every table of published numbers.":
    "scalecrafter_table1",
    "fouriscale",
    "self_cascade",
    "accdiffusion",
    "fam",
    "lsrna",
    "freescale",
    "megafusion",
    "self_cascade_video",
    "freescale_video",
);

fn table_names() -> String {
    PUBLISHED.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ")
}

/// A table of published numbers: `model,scale,width,height,method`, then columns named as a protocol's.
pub(crate) fn published_table(name: &str) -> Option<&'static str> {
    PUBLISHED.iter().find(|(table, _)| *table == name).map(|(_, text)| *text)
}

/// A row of a table of published numbers.
pub(crate) struct Published<'a> {
    pub(crate) family: &'a str,
    pub(crate) scale: f64,
    pub(crate) size: (&'a str, &'a str),
    pub(crate) method: &'a str,
    /// Columns and values, where there is one.
    pub(crate) values: Vec<(&'a str, Option<f64>)>,
}

/// The rows of a table of published numbers.
pub(crate) fn published_rows(table: &str) -> impl Iterator<Item = Published<'static>> {
    let mut lines = published_table(table).unwrap_or_default().lines();
    let columns: Vec<&str> = lines.next().unwrap_or_default().split(',').collect();
    lines.filter_map(move |line| {
        let cells: Vec<&str> = line.split(',').collect();
        let &[family, scale, width, height, method, ..] = &cells[..] else { return None };
        let values = columns.iter().zip(&cells).skip(5).map(|(column, cell)| (*column, cell.parse().ok())).collect();
        Some(Published { family, scale: scale.trim_end_matches('x').parse().ok()?, size: (width, height), method, values })
    })
}

/// The published value of a cell in a column, where the table has it.
pub(crate) fn published(table: &str, family: &str, scale: f64, method: &str, column: &str) -> Option<f64> {
    let row = published_rows(table).find(|row| row.family == family && row.scale == scale && row.method == method)?;
    row.values.into_iter().find(|(name, _)| *name == column)?.1
}

/// Names of the built-in protocols.
pub(crate) fn names() -> impl Iterator<Item = &'static str> {
    BUILTIN.iter().map(|(name, _)| *name)
}

/// The YAML of a built-in protocol.
pub(crate) fn text(name: &str) -> Option<&'static str> {
    BUILTIN.iter().find(|(builtin, _)| *builtin == name).map(|(_, text)| *text)
}

/// A built-in protocol by name, or the one in a YAML file; relative paths start at `folder`.
pub(crate) fn find(name: &str, folder: &Path) -> Result<Protocol> {
    if let Some(text) = text(name) {
        return parse(text, &format!("experiments/protocols/{name}.yaml"));
    }
    if is_file_name(name) {
        let file = folder.join(name);
        let text = std::fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
        return parse(&text, &file.display().to_string());
    }
    let known: Vec<_> = names().collect();
    let hint = did_you_mean(name, known.iter().copied());
    bail!("unknown protocol `{name}`, expected a path ending in .yaml or one of {}{hint}", known.join(", "))
}

pub(crate) fn parse(text: &str, file: &str) -> Result<Protocol> {
    let value = yaml::read(text.as_bytes()).map_err(|error| anyhow!("{file}: {error}"))?;
    let protocol: Protocol = yaml::from_value(value).map_err(|message| anyhow!("{file}: {message}"))?;
    protocol.check().with_context(|| file.to_owned())?;
    Ok(protocol)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_builtin_parses_under_its_own_name_and_says_where_it_is_from() {
        for name in names() {
            let protocol = find(name, Path::new("")).unwrap();
            assert_eq!(protocol.name, name);
            assert!(protocol.source.len() > 10, "{name}");
            // What was resolved is kept with a run and read back.
            let text = serde_yaml::to_string(&protocol).unwrap();
            assert_eq!(parse(&text, "again").unwrap(), protocol);
        }
    }

    /// Numbers that the protocols promise can be found, and every column of a table belongs to its protocol.
    #[test]
    fn published_tables_fit_their_protocols() {
        for name in names() {
            let protocol = find(name, Path::new("")).unwrap();
            let Some(table) = &protocol.published else { continue };
            let header = published_table(table).unwrap().lines().next().unwrap();
            let columns: Vec<String> = protocol.scores().into_iter().map(|score| score.column).collect();
            assert!(header.starts_with("model,scale,width,height,method,"), "{table}: {header}");
            for column in header.split(',').skip(5) {
                assert!(columns.iter().any(|known| known == column), "{table}: {column} is not a column of {name}: {columns:?}");
            }
            let n_columns = header.split(',').count();
            for line in published_table(table).unwrap().lines().skip(1) {
                assert_eq!(line.split(',').count(), n_columns, "{table}: {line}");
                let cells = line.split(',').skip(5).filter(|cell| !cell.is_empty());
                assert!(cells.clone().count() > 0 && cells.clone().all(|cell| cell.parse::<f64>().is_ok()), "{table}: {line}");
            }
        }
        let value = |method, column| published("scalecrafter_table1", "sd15", 4.0, method, column);
        assert_eq!((value("direct-inf", "fid_r"), value("direct-inf", "kid_b")), (Some(38.50), Some(0.008)));
        assert_eq!((value("redilation", "fid_r"), value("direct-inf", "fid_x")), (None, None));
    }

    const PLAIN: &str = "
        name: mine
        title: Mine
        source: a test
        n_images: {<=1024x1024: 30000, default: 10000}
        compare:
          - {id: r, against: reference, metrics: [fid, kid]}
          - {id: c, against: base, metrics: [fid], generated: {crops: {count: 4}}}
    ";

    #[test]
    fn a_plain_file_says_what_will_be_measured() {
        let protocol = parse(PLAIN, "mine.yaml").unwrap();
        let columns: Vec<String> = protocol.scores().into_iter().map(|score| score.column).collect();
        assert_eq!(columns, ["fid_r", "kid_r", "fid_c"]);
        assert_eq!((protocol.images_at(1024, 1024), protocol.images_at(2048, 1024)), (Some(30000), Some(10000)));
        let crops = protocol.compare[1].generated(7, 64, (128, 128));
        assert_eq!(crops.id(), "clean/crops4x64@7");
        assert_eq!(protocol.compare[1].generated(7, 64, (64, 64)).id(), "clean");
        assert_eq!(protocol.compare[1].other(7, 64, (64, 64)).id(), "clean");
    }

    #[test]
    fn faults_are_named() {
        for (from, to, fragments) in [
            ("against: base", "against: bas", &["mine.yaml: compare[1].against", "expected one of `reference`, `base`"][..]),
            ("count: 4", "count: 0", &["mine.yaml: compare[1].generated.crops.count"]),
            ("count: 4", "count: 4, size: basic", &["compare[1].generated.crops.size", "expected `base`"]),
            ("id: c", "id: r", &["compare[1].id", "twice"]),
            ("metrics: [fid]", "metrics: [clip_score]", &["clip_score is measured against prompts"]),
            ("metrics: [fid]", "metrics: [fit]", &["compare[1].metrics", "did you mean `fid`?"]),
            ("<=1024x1024", "<=1024", &["n_images", "`<=1024`"]),
        ] {
            let message = format!("{:#}", parse(&PLAIN.replace(from, to), "mine.yaml").unwrap_err());
            for fragment in fragments {
                assert!(message.contains(fragment), "{to}: {message}");
            }
        }
        let message = find("scalecraft", Path::new("")).unwrap_err().to_string();
        assert!(message.contains("did you mean `scalecrafter`?"), "{message}");
    }
}
