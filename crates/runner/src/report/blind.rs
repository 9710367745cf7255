//! A forced-choice study: a page that shows two methods' images of the same prompts and seeds side by side and does not say whose is
//! whose, and the key that says it.

use anyhow::{Context, Result, ensure};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use maud::{Markup, PreEscaped, html};
use scalebench_metrics::random::RandomState;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::experiment::resolved::{Method, Model, Resolved, Scale, cell_name};
use crate::report::frame::{self, Pictures};
use crate::run::png;
use crate::run::store::{ManifestLine, Store};

/// How the page looks.
const STYLE: &str = include_str!("blind.css");
/// What shows the pairs and keeps the choices.
const SCRIPT: &str = include_str!("blind.js");

/// What a study asks unless told otherwise.
pub(crate) const QUESTION: &str = "Which of the two images is better?";

/// Who is on which side: what turns choices into votes. It stays with those who ask.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Key {
    /// Digest of the images, their order and sides; votes carry it.
    pub(crate) study: String,
    pub(crate) question: String,
    pub(crate) model: String,
    pub(crate) scale: String,
    /// Name and title of the first method, whose wins are counted.
    pub(crate) a: (String, String),
    pub(crate) b: (String, String),
    /// In the order in which they are shown.
    pub(crate) pairs: Vec<Pair>,
}

/// Two images of one prompt and seed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Pair {
    /// Of the images in their cells.
    pub(crate) index: usize,
    pub(crate) prompt: String,
    pub(crate) seed: u64,
    /// Whether the first method's is on the left.
    pub(crate) a_is_left: bool,
}

/// What is shown.
pub(crate) struct Study<'a> {
    pub(crate) store: &'a Store,
    pub(crate) resolved: &'a Resolved,
    pub(crate) model: &'a Model,
    pub(crate) scale: &'a Scale,
    pub(crate) methods: [&'a Method; 2],
    /// The first of them are shown.
    pub(crate) images: Option<usize>,
    /// Of order and sides.
    pub(crate) seed: u32,
    pub(crate) question: &'a str,
}

impl Study<'_> {
    /// The page and its key.
    pub(crate) fn make(&self) -> Result<(String, Key)> {
        let cells = self.methods.map(|method| cell_name(&self.model.name, self.scale, &method.name));
        let manifests = [self.manifest(&cells[0])?, self.manifest(&cells[1])?];
        let n = self.images.unwrap_or(usize::MAX).min(manifests[0].len()).min(manifests[1].len());
        ensure!(n > 0, "expected at least one image");
        // As many on each side, in an order that shares no numbers with that of the pairs.
        let mut random = RandomState::new(self.seed);
        let (order, sides) = (random.permutation(n as u32), random.permutation(n as u32));
        let (mut pairs, mut shown, mut digest) = (Vec::new(), Vec::new(), blake3::Hasher::new());
        for (place, &index) in order.iter().enumerate() {
            let [a, b] = [&manifests[0][index], &manifests[1][index]];
            ensure!(
                (&a.prompt, a.seed) == (&b.prompt, b.seed),
                "image {index} of {} and {} has another prompt or seed, expected two methods on the same",
                cells[0],
                cells[1]
            );
            let a_is_left = sides[place] % 2 == 0;
            digest.update(format!("{} {} {a_is_left}\n", a.blake3, b.blake3).as_bytes());
            let (left, right) = if a_is_left { (0, 1) } else { (1, 0) };
            let image = |side: usize| self.image(&cells[side], &manifests[side][index]);
            shown.push(json!({ "prompt": a.prompt, "left": image(left)?, "right": image(right)? }));
            pairs.push(Pair { index: a.index, prompt: a.prompt.clone(), seed: a.seed, a_is_left });
        }
        digest.update(self.question.as_bytes());
        let study = digest.finalize().to_hex()[..16].to_owned();
        let page = page(&json!({ "study": study, "question": self.question, "pairs": shown }));
        let named = |method: &Method| (method.name.clone(), method.title.clone());
        let [a, b] = self.methods.map(named);
        let question = self.question.to_owned();
        Ok((page, Key { study, question, model: self.model.name.clone(), scale: self.scale.label(), a, b, pairs }))
    }

    fn manifest(&self, cell: &str) -> Result<Vec<ManifestLine>> {
        ensure!(!self.resolved.is_missing(cell), "cell {cell} is empty: no images were brought for it");
        let lines: Vec<ManifestLine> = self.store.read_lines(&format!("cells/{cell}/manifest.jsonl"))?;
        ensure!(!lines.is_empty(), "cell {cell}: no manifest, expected a finished run");
        Ok(lines)
    }

    /// An image as it is, without its key, which would tell who made it.
    fn image(&self, cell: &str, line: &ManifestLine) -> Result<String> {
        let bytes = self.store.read_image(cell, line.index, &line.key)?;
        let bytes = bytes.with_context(|| format!("cell {cell}: image {} is missing or damaged", line.index))?;
        let frames = png::decode_frames(&bytes)?.0;
        let fps = self.resolved.video.map_or(1.0, |video| video.fps);
        Ok(format!("data:image/png;base64,{}", BASE64_STANDARD.encode(png::encode_frames(&frames, fps, None)?)))
    }
}

/// The page of a study: what [`SCRIPT`] is to show lies in it as data.
fn page(study: &Value) -> String {
    // A script element ends at the first `</`, even inside of a string.
    let data = study.to_string().replace("</", "<\\/");
    let choice = |id: &str, name: &str, key: &str| -> Markup {
        html! {
            button id=(id) type="button" {
                img id={ (id) "-image" } alt={ (name) " image" };
                span { (name) " " kbd { (key) } }
            }
        }
    };
    let body = html! {
        main {
            h1 id="question" {}
            section id="asking" {
                p id="prompt" {}
                div.pair { (choice("left", "Left", "←")) (choice("right", "Right", "→")) }
                div.bar {
                    button id="back" type="button" { "Back" }
                    progress id="progress" max="1" value="0" aria-label="Pairs done" {}
                    span id="count" aria-live="polite" {}
                }
            }
            section id="done" hidden {
                p { "Thank you. Please save your choices and hand the file in." }
                div.bar {
                    a id="save" download="votes.csv" { "Save votes.csv" }
                    button id="again" type="button" { "Back" }
                }
                textarea id="csv" readonly aria-label="Your choices" {}
            }
        }
        script type="application/json" id="study" { (PreEscaped(data)) }
    };
    frame::document("Which image?", Pictures::Inside, &[STYLE], &[SCRIPT], &body)
}
