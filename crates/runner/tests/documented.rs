//! Every public item of the libraries has an example, or a last line that says where one shows it:
//!
//! ```text
//! /// Example: [`Journey`].
//! ```
//!
//! What is named, an item, a module (`[this module](self)`) or the crate (`[this crate](crate)`), has an example whose visible lines
//! mention the item; that links lead somewhere is rustdoc's part. Constants, variants, fields and what implements a trait are shown
//! with their type. Sources are read as text: what a macro makes is not seen.

use std::path::Path;

const LIBRARIES: [&str; 7] = ["emoji", "fuzz", "generation", "kernels", "metrics", "pocket", "runner"];

const KINDS: [&str; 5] = ["fn", "struct", "enum", "trait", "type"];

/// A module or an item, and what is written above it.
struct Item {
    /// Crate, modules, type and name, as `crate::step::Step::maps`.
    path: String,
    is_public: bool,
    /// Without the markers of comments.
    docs: Vec<String>,
}

impl Item {
    fn new(parent: &str, name: &str, is_public: bool, docs: Vec<String>) -> Self {
        let path = if parent.is_empty() { name.to_owned() } else { format!("{parent}::{name}") };
        Self { path, is_public, docs }
    }

    fn parent(&self) -> &str {
        self.path.rsplit_once("::").map_or("", |(parent, _)| parent)
    }

    /// The words of its examples, without the lines that a reader does not see.
    fn shown(&self) -> Vec<&str> {
        let (mut shown, mut in_example) = (Vec::new(), None);
        for line in &self.docs {
            match (line.strip_prefix("```"), in_example) {
                (Some(kind), None) => in_example = Some(["", "no_run"].contains(&kind)),
                (Some(_), Some(_)) => in_example = None,
                (None, Some(true)) if !line.starts_with('#') || line.starts_with("#[") => {
                    shown.extend(line.split(|c: char| !c.is_alphanumeric() && c != '_'));
                }
                _ => {}
            }
        }
        shown
    }

    /// Whose example its last line says to look at.
    fn reference(&self) -> Option<String> {
        let link = self.docs.last()?.strip_prefix("Example: [")?.strip_suffix('.')?;
        let target = match link.split_once("](") {
            Some((_, target)) => target.strip_suffix(')')?,
            None => link.strip_suffix(']')?.trim_matches('`'),
        };
        let target = target.rsplit('@').next()?.trim_end_matches("()");
        let own = target.strip_prefix("Self").or_else(|| target.strip_prefix("self").filter(|rest| rest.is_empty()));
        Some(own.map_or_else(|| target.to_owned(), |rest| format!("{}{rest}", self.parent())))
    }

    fn is(&self, target: &str) -> bool {
        self.path == target || self.path.ends_with(&format!("::{}", target.trim_start_matches("crate::")))
    }

    /// What is wrong with it, if anything is.
    fn problem(&self, all: &[Self]) -> Option<String> {
        let name = self.path.rsplit("::").next().unwrap_or_default();
        let shows = |item: &Self| item.shown().iter().any(|word| *word == name || self.path == "crate");
        if shows(self) {
            return None;
        }
        let Some(target) = self.reference() else {
            return Some(format!("{}: no example of it, and no last line `Example: […].`", self.path));
        };
        let is_shown = all.iter().any(|item| item.is(&target) && shows(item));
        (!is_shown).then(|| format!("{}: not in the example of {target}", self.path))
    }
}

/// The module of a source file and the public items in it.
fn items(module: Item, text: &str) -> Vec<Item> {
    let comment = |line: &str, marker| line.trim_start().strip_prefix(marker).map(|doc| doc.strip_prefix(' ').unwrap_or(doc).to_owned());
    let (path, mut docs, mut implemented) = (module.path.clone(), Vec::new(), String::new());
    let mut found = vec![Item { docs: text.lines().map_while(|line| comment(line, "//!")).collect(), ..module }];
    for line in text.split("\n#[cfg(test)]\nmod ").next().unwrap_or_default().lines() {
        if let Some(doc) = comment(line, "///") {
            docs.push(doc);
            continue;
        }
        // `impl<T: Copy, const C: usize> Raster<T, C> {`
        if let Some(rest) = line.strip_prefix("impl") {
            let rest = rest.strip_prefix('<').map_or(rest, |generic| generic.split_once("> ").map_or("", |(_, rest)| rest));
            implemented = rest.trim_start().chars().take_while(|c| c.is_alphanumeric()).collect();
        }
        let words = line.trim_start().strip_prefix("pub ").unwrap_or_default().split([' ', '(', '<', ';', ':']);
        let words: Vec<&str> = words.filter(|word| !["const", "unsafe"].contains(word)).collect();
        if let [kind, name, ..] = words[..]
            && KINDS.contains(&kind)
            && !name.starts_with('$')
        {
            let parent = if line.starts_with(' ') { format!("{path}::{implemented}") } else { path.clone() };
            found.push(Item::new(&parent, name, true, std::mem::take(&mut docs)));
        }
        // Attributes stand between an item and what is written above it.
        if !line.trim_start().starts_with('#') {
            docs.clear();
        }
    }
    found
}

/// All modules of a crate with their public items.
fn of_crate(krate: &str) -> Vec<Item> {
    fn walk(folder: &Path, path: &str, public: &[String], found: &mut Vec<Item>) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let (file, name) = entry.map(|entry| (entry.path(), entry.file_name().into_string().unwrap())).unwrap();
            if file.is_dir() {
                walk(&file, &format!("{path}::{name}"), public, found);
            } else if let Some(stem) = name.strip_suffix(".rs").filter(|stem| *stem != "main") {
                let module = if ["lib", "mod"].contains(&stem) { path.to_owned() } else { format!("{path}::{stem}") };
                let is_public = module == "crate" || public.contains(&module);
                found.extend(items(Item::new("", &module, is_public, Vec::new()), &std::fs::read_to_string(&file).unwrap()));
            }
        }
    }
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(krate).join("src");
    let root = std::fs::read_to_string(sources.join("lib.rs")).unwrap();
    let public = root.lines().filter_map(|line| line.strip_prefix("pub mod ")?.strip_suffix(';'));
    let mut found = Vec::new();
    walk(&sources, "crate", &public.map(|name| format!("crate::{name}")).collect::<Vec<_>>(), &mut found);
    found
}

fn problems(all: &[Item]) -> Vec<String> {
    let mut problems: Vec<String> = all.iter().filter(|item| item.is_public).filter_map(|item| item.problem(all)).collect();
    problems.sort();
    problems
}

#[test]
fn every_public_item_has_an_example() {
    for krate in LIBRARIES {
        let all = of_crate(krate);
        assert!(all.iter().filter(|item| item.is_public).count() > 5, "{krate}: {} items", all.len());
        let problems = problems(&all);
        assert!(problems.is_empty(), "{krate}: {} of {} items\n{}", problems.len(), all.len(), problems.join("\n"));
    }
}

#[test]
fn what_has_no_example_is_found() {
    let text = r#"
//! What is shown.
//!
//! ```
//! let x = krate::shapes::Square::new(2);
//! # x.hidden();
//! ```

/// Four sides.
///
/// Example: [this module](self).
#[derive(Debug)]
pub struct Square<const N: usize>(usize);

impl<const N: usize> Square<N> {
    /// Of a side. Example:
    /// Example: [`shapes`](crate::shapes).
    pub const fn new(side: usize) -> Self {}

    /// Its side.
    /// Example: [this module](self).
    pub fn hidden(&self) -> usize {}

    /// Its area.
    pub fn area(&self) -> usize {}

    /// No one else's.
    pub(crate) fn own(&self) {}
}

/// ```text
/// round()
/// ```
pub fn round() {}

/// ```
/// krate::shapes::flat();
/// ```
pub fn flat() {}
"#;
    let found = items(Item::new("", "crate::shapes", true, Vec::new()), &text[1..]);
    let names: Vec<&str> = found.iter().map(|item| item.path.as_str()).collect();
    let square = "crate::shapes::Square";
    assert_eq!(names[..3], ["crate::shapes", square, "crate::shapes::Square::new"]);
    assert_eq!(
        problems(&found),
        [
            "crate::shapes::Square::area: no example of it, and no last line `Example: […].`",
            "crate::shapes::Square::hidden: not in the example of crate::shapes::Square",
            "crate::shapes::round: no example of it, and no last line `Example: […].`",
        ]
    );
}
