//! The documentation holds together: links lead somewhere, the book names all of its pages, and the README stays short.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}

/// Every Markdown file of the repository but for what is built.
fn pages() -> Vec<PathBuf> {
    fn walk(folder: &Path, found: &mut Vec<PathBuf>) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap_or_default().to_owned();
            let is_other = ["target", "runs", "node_modules"].contains(&name.as_str()) || name.starts_with('.') && name != ".github";
            if path.is_dir() && !is_other {
                walk(&path, found);
            } else if name.ends_with(".md") {
                found.push(path);
            }
        }
    }
    let root = root();
    let mut found = Vec::new();
    for folder in [".github", "crates", "datasets", "experiments", "reports", "scripts"] {
        walk(&root.join(folder), &mut found);
    }
    found.push(root.join("README.md"));
    found
}

/// Lines outside of code blocks.
fn prose(text: &str) -> impl Iterator<Item = &str> {
    let mut is_code = false;
    text.lines().filter(move |line| {
        let is_fence = line.trim_start().starts_with("```");
        is_code ^= is_fence;
        !is_code && !is_fence
    })
}

/// Targets of links and images: what stands between `](` and `)`.
fn targets(text: &str) -> Vec<String> {
    let of_line = |line: &str| line.split("](").skip(1).filter_map(|rest| Some(rest.split_once(')')?.0.to_owned())).collect::<Vec<_>>();
    prose(text).flat_map(of_line).collect()
}

/// The anchors of a page's headings, as GitHub and mdBook make them.
fn anchors(text: &str) -> BTreeSet<String> {
    let heads = prose(text).filter(|line| line.starts_with('#')).map(|line| line.trim_start_matches('#').trim().to_lowercase());
    let keep = |c: char| c.is_alphanumeric() || c == '-' || c == '_';
    heads.map(|head| head.chars().map(|c| if c == ' ' { '-' } else { c }).filter(|c| keep(*c)).collect()).collect()
}

#[test]
fn links_lead_somewhere() {
    let mut dead = Vec::new();
    let pages = pages();
    assert!(pages.len() > 20, "{} pages", pages.len());
    for page in &pages {
        let text = std::fs::read_to_string(page).unwrap();
        for target in targets(&text).into_iter().filter(|target| !target.contains("://")) {
            let (file, anchor) = target.split_once('#').unwrap_or((&target, ""));
            let path = if file.is_empty() { page.clone() } else { page.parent().unwrap().join(file) };
            let is_there = path.exists();
            let has_anchor = || anchor.is_empty() || anchors(&std::fs::read_to_string(&path).unwrap_or_default()).contains(anchor);
            if !is_there || !has_anchor() {
                dead.push(format!("{}: {target}", page.strip_prefix(root()).unwrap().display()));
            }
        }
    }
    assert!(dead.is_empty(), "{dead:#?}");
}

/// A page that the summary does not name is not in the book; a link out of the book leads nowhere once it is built.
#[test]
fn the_book_has_all_of_its_pages() {
    let experiments = root().join("experiments");
    let summary = std::fs::read_to_string(experiments.join("SUMMARY.md")).unwrap();
    let named: BTreeSet<String> = targets(&summary).into_iter().collect();
    let mut there: BTreeSet<String> = BTreeSet::from(["README.md".to_owned()]);
    for entry in std::fs::read_dir(experiments.join("book")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let text = std::fs::read_to_string(experiments.join("book").join(&name)).unwrap();
        let outward: Vec<String> =
            targets(&text).into_iter().filter(|target| target.starts_with("../") && !target.starts_with("../README.md")).collect();
        let outward: Vec<&String> = outward.iter().filter(|target| !target.ends_with(".yaml") && !target.ends_with(".json")).collect();
        assert!(outward.is_empty(), "{name}: {outward:?}");
        there.insert(format!("book/{name}"));
    }
    assert_eq!(named, there);
}

#[test]
fn the_readme_is_short() {
    let text = std::fs::read_to_string(root().join("README.md")).unwrap();
    assert!(text.lines().count() <= 120, "{} lines", text.lines().count());
}
