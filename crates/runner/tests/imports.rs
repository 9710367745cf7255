//! Imports inside a crate go one way: the rule of `crates/README.md`, held against the source files.
//!
//! A folder's `mod.rs` and its files count as one here: files may use what it holds. Everything else that a path beginning with
//! `crate::` or `super::` names is an import, in tests too.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// What each module imports; both by their paths, such as `run::store`. The crate's root is the empty path.
type Graph = BTreeMap<String, BTreeSet<String>>;

/// Every source file of a crate by its module path, without comments.
fn sources(krate: &str) -> BTreeMap<String, String> {
    fn walk(folder: &Path, path: &str, found: &mut BTreeMap<String, String>) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let (file, name) = entry.map(|entry| (entry.path(), entry.file_name().into_string().unwrap())).unwrap();
            let stem = name.trim_end_matches(".rs");
            let module = join(path, stem);
            if file.is_dir() {
                walk(&file, &module, found);
            } else if name.ends_with(".rs") {
                let text = std::fs::read_to_string(&file).unwrap();
                let code = text.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n");
                // The program's own file is a call of its library.
                let module = if ["main", "lib", "mod"].contains(&stem) { path.to_owned() } else { module };
                *found.entry(module).or_default() += &code;
            }
        }
    }
    let mut found: BTreeMap<String, String> = BTreeMap::new();
    walk(&Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(krate).join("src"), "", &mut found);
    found
}

fn join(path: &str, rest: &str) -> String {
    if path.is_empty() { rest.to_owned() } else { format!("{path}::{rest}") }
}

/// The paths that a path with groups stands for: `a::{b, c::{d, e}}` for three.
fn paths(text: &str) -> Vec<String> {
    let end = text.find(|c: char| !(c.is_alphanumeric() || "_:".contains(c))).unwrap_or(text.len());
    let stem = text[..end].trim_end_matches("::");
    if !text[end..].starts_with('{') {
        return vec![stem.to_owned()];
    }
    let (mut depth, mut from, mut found) = (0, end + 1, Vec::new());
    for (i, c) in text[end..].char_indices().map(|(i, c)| (end + i, c)) {
        depth += i32::from(c == '{') - i32::from(c == '}');
        if depth == 0 || depth == 1 && c == ',' {
            found.extend(paths(text[from..i].trim()).into_iter().map(|rest| join(stem, &rest)));
            from = i + 1;
        }
        if depth == 0 {
            break;
        }
    }
    found
}

/// What the files import of one another.
fn imports(sources: &BTreeMap<String, String>) -> Graph {
    let is_module = |path: &str| sources.contains_key(path);
    let module = |path: &str| {
        let mut path = path;
        while !is_module(path) {
            path = path.rsplit_once("::").map_or("", |(parent, _)| parent);
        }
        path.to_owned()
    };
    let mut graph = Graph::new();
    for (name, code) in sources {
        let parent = name.rsplit_once("::").map_or("", |(parent, _)| parent);
        let after = |word| code.match_indices(word).map(|(i, word)| &code[i + word.len()..]);
        // A test module's `super` is the file itself, not what stands above it.
        let beside = after("super::").flat_map(paths).map(|path| module(&join(parent, &path))).filter(|other| other != parent);
        let mut found: BTreeSet<String> = after("crate::").flat_map(paths).map(|path| module(&path)).chain(beside).collect();
        if name.is_empty() {
            // What the root hands on is its own only in name.
            found.extend(after("pub use ").flat_map(paths).map(|path| module(&path)));
        }
        found.retain(|other| other != name && (other.is_empty() || !name.starts_with(&format!("{other}::"))));
        graph.insert(name.clone(), found);
    }
    graph
}

/// The same between the modules of the crate's root.
fn between_folders(graph: &Graph) -> Graph {
    let folder = |path: &String| path.split("::").next().unwrap_or_default().to_owned();
    let mut folders = Graph::new();
    for (name, imported) in graph {
        let others = imported.iter().map(folder).filter(|other| *other != folder(name));
        folders.entry(folder(name)).or_default().extend(others);
    }
    folders
}

/// Modules that import each other in a ring, if there are any.
fn circle(graph: &Graph) -> Option<Vec<String>> {
    let mut left = graph.clone();
    loop {
        // Whatever imports nothing that is left is on no circle.
        let names: BTreeSet<String> = left.keys().cloned().collect();
        let free: Vec<String> = left.iter().filter(|(_, imported)| imported.is_disjoint(&names)).map(|(name, _)| name.clone()).collect();
        if free.is_empty() {
            break;
        }
        free.iter().for_each(|name| drop(left.remove(name)));
    }
    let mut ring = vec![left.keys().next()?.clone()];
    loop {
        let next = left[&ring[ring.len() - 1]].iter().find(|name| left.contains_key(*name))?.clone();
        if let Some(first) = ring.iter().position(|name| *name == next) {
            return Some(ring.split_off(first));
        }
        ring.push(next);
    }
}

/// Imports that go up: from a folder to one that stands before it.
fn upward(folders: &Graph, order: &[&str]) -> Vec<String> {
    let place = |name: &str| order.iter().position(|known| *known == name);
    let mut found = Vec::new();
    for (from, imported) in folders.iter().filter(|(from, _)| !from.is_empty()) {
        let wrong = imported.iter().filter(|to| place(from).is_none() || place(to) <= place(from));
        found.extend(wrong.map(|to| format!("{from} -> {to}")));
    }
    found
}

#[test]
fn imports_go_one_way() {
    for krate in ["generation", "runner"] {
        let sources = sources(krate);
        assert!(sources.len() > 30, "{krate}: {} files", sources.len());
        let graph = imports(&sources);
        assert_eq!(circle(&graph), None, "{krate}: files");
        assert_eq!(circle(&between_folders(&graph)), None, "{krate}: folders");
    }
    let rule = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../README.md")).unwrap();
    let order: Vec<&str> = rule.lines().find(|line| line.starts_with("`commands` → ")).unwrap().split('`').skip(1).step_by(2).collect();
    assert_eq!(upward(&between_folders(&imports(&sources("runner"))), &order), [""; 0]);
}

#[test]
fn circles_and_ways_up_are_found() {
    let code = |files: &[(&str, &str)]| files.iter().map(|(name, code)| ((*name).to_owned(), (*code).to_owned())).collect();
    let graph = imports(&code(&[
        ("", "mod a; mod b; pub use a::x::X;"),
        ("a", "pub mod x; pub mod y; pub struct A;"),
        ("a::x", "use super::{A, y::{Y, z}}; use crate::b::c::{self, C};"),
        ("a::y", "#[with = \"crate::b::f\"] fn g() { super::A }"),
        ("b", "pub mod c;"),
        ("b::c", "struct C;"),
    ]));
    let of = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<_>>();
    assert_eq!((&graph["a::x"], &graph["a::y"], &graph[""]), (&of(&["a::y", "b::c"]), &of(&["b"]), &of(&["a::x"])));
    assert_eq!(circle(&graph), None);
    assert_eq!(upward(&between_folders(&graph), &["a", "b"]), [""; 0]);
    assert_eq!(upward(&between_folders(&graph), &["b", "a"]), ["a -> b"]);
    let mut ring = graph.clone();
    ring.insert("b::c".to_owned(), of(&["a::y"]));
    assert_eq!(circle(&ring), None, "b is not b::c");
    assert_eq!(circle(&between_folders(&ring)), Some(vec!["a".to_owned(), "b".to_owned()]));
    ring.insert("b::c".to_owned(), of(&["a::x"]));
    assert_eq!(circle(&ring), Some(vec!["a::x".to_owned(), "b::c".to_owned()]));
    // Handing a name on through the root hides no circle.
    ring = graph.clone();
    ring.insert("a::y".to_owned(), of(&[""]));
    assert_eq!(circle(&ring), Some(vec![String::new(), "a::x".to_owned(), "a::y".to_owned()]));
}
