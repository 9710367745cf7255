//! The report of a run, as a reader without a browser sees it: well-formed, self-contained, accessible, and safe against
//! what stands in prompts.

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use common::{fail, scalebench, succeed, tiny};

const HOSTILE: [&str; 3] = [
    "<script>alert(1)</script>&\"'",
    "\"><img src=x onerror=alert(2)> ' onclick='alert(3)",
    "</style></table>]]>--><!-- javascript:alert(4) \u{202e}drawkcab | & \\ %",
];

/// An element: name, attributes with their values decoded, and the text directly within it.
#[derive(Debug)]
struct Element {
    name: String,
    attributes: BTreeMap<String, String>,
    parents: Vec<String>,
    text: String,
}

fn decode(text: &str) -> String {
    let named = [("&lt;", "<"), ("&gt;", ">"), ("&quot;", "\""), ("&#39;", "'"), ("&amp;", "&")];
    named.iter().fold(text.to_owned(), |text, (name, character)| text.replace(name, character))
}

/// Parses HTML as strictly as XML, but for elements that hold nothing and elements whose content is no markup.
fn parse(html: &str) -> Vec<Element> {
    const VOID: [&str; 5] = ["meta", "link", "img", "br", "input"];
    let mut elements: Vec<Element> = Vec::new();
    let mut open: Vec<usize> = Vec::new();
    let mut rest = html.strip_prefix("<!DOCTYPE html>").expect("a doctype");
    while let Some(at) = rest.find('<') {
        let text = &rest[..at];
        assert!(!text.contains('>'), "a `>` that is not escaped: {text}");
        if let Some(parent) = open.last() {
            elements[*parent].text += &decode(text);
        }
        rest = &rest[at + 1..];
        if let Some(closing) = rest.strip_prefix('/') {
            let (name, after) = closing.split_once('>').unwrap();
            let last = open.pop().unwrap_or_else(|| panic!("</{name}> closes nothing"));
            assert_eq!(elements[last].name, name, "misnested");
            rest = after;
            continue;
        }
        let end = rest.find(|c: char| !c.is_ascii_alphanumeric()).unwrap();
        let name = rest[..end].to_owned();
        assert!(!name.is_empty(), "a `<` that begins no element: {}", &rest[..rest.len().min(40)]);
        rest = &rest[end..];
        let mut attributes = BTreeMap::new();
        loop {
            rest = rest.trim_start();
            if let Some(after) = rest.strip_prefix("/>") {
                (open, rest) = (open, after);
                elements.push(Element { name: name.clone(), attributes, parents: names(&elements, &open), text: String::new() });
                break;
            }
            if let Some(after) = rest.strip_prefix('>') {
                rest = after;
                elements.push(Element { name: name.clone(), attributes, parents: names(&elements, &open), text: String::new() });
                if !VOID.contains(&name.as_str()) {
                    open.push(elements.len() - 1);
                }
                break;
            }
            let end = rest.find(['=', ' ', '>', '/', '\n']).unwrap();
            let key = rest[..end].to_owned();
            assert!(key.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == ':'), "attribute `{key}`");
            rest = &rest[end..];
            let mut value = "";
            if let Some(quoted) = rest.strip_prefix("=\"") {
                (value, rest) = quoted.split_once('"').unwrap();
            }
            assert!(!value.contains(['<', '>']), "{key}: {value}");
            assert!(attributes.insert(key.clone(), decode(value)).is_none(), "{key} twice");
        }
        if name == "style" || name == "script" {
            let (content, after) = rest.split_once(&format!("</{name}>")).unwrap();
            let element = open.pop().unwrap();
            elements[element].text = content.to_owned();
            rest = after;
        }
    }
    assert!(open.is_empty(), "not closed: {open:?}");
    elements
}

fn names(elements: &[Element], open: &[usize]) -> Vec<String> {
    open.iter().map(|i| elements[*i].name.clone()).collect()
}

/// What must hold for every report.
fn check_page(elements: &[Element]) {
    check_any(elements, &|_| false);
    let count = |name: &str| elements.iter().filter(|e| e.name == name).count();
    assert_eq!(count("script"), 1);
}

/// What must hold for every page, which may lead to some other files.
fn check_any(elements: &[Element], is_file: &dyn Fn(&str) -> bool) {
    let get = |element: &Element, key: &str| element.attributes.get(key).cloned();
    let ids: Vec<String> = elements.iter().filter_map(|e| get(e, "id")).collect();
    assert_eq!(ids.iter().collect::<BTreeSet<_>>().len(), ids.len(), "identifiers are unique: {ids:?}");
    let mut level = 0;
    for element in elements {
        for (key, value) in &element.attributes {
            assert!(!key.starts_with("on"), "a handler: {key}={value}");
            if ["src", "href", "srcset", "action", "data", "xlink:href"].contains(&key.as_str()) {
                let inside = value.strip_prefix('#').is_some_and(|id| ids.iter().any(|known| known == id));
                assert!(inside || value.starts_with("data:") || is_file(value), "leads nowhere: {key}={value}");
            }
            if key == "aria-labelledby" {
                assert!(ids.contains(value), "{key}={value} names nothing");
            }
            if key == "style" {
                panic!("an inline style: {value}");
            }
        }
        match element.name.as_str() {
            "img" => assert!(!get(element, "alt").expect("a text for every image").trim().is_empty()),
            "th" => assert!(["col", "row", "colgroup", "rowgroup"].contains(&get(element, "scope").expect("a scope").as_str())),
            "button" => assert_eq!(get(element, "type").as_deref(), Some("button")),
            "svg" => assert!(element.parents.contains(&"figure".to_owned()), "a drawing without a caption"),
            "h1" | "h2" | "h3" => {
                let found = element.name[1..].parse::<usize>().unwrap();
                assert!(found <= level + 1, "heading {} after level {level}", element.text);
                level = found;
            }
            "link" => assert_eq!(get(element, "href").as_deref(), Some("data:,")),
            "style" => assert!(!element.text.contains("url(") && !element.text.contains("@import")),
            "iframe" | "object" | "embed" | "base" => panic!("{} has no place here", element.name),
            _ => {}
        }
    }
    let count = |name: &str| elements.iter().filter(|e| e.name == name).count();
    assert_eq!((count("html"), count("h1"), count("main"), count("dialog")), (1, 1, 1, 1));
    assert_eq!(count("table"), count("caption"), "every table says what it is");
    assert_eq!(count("figure"), count("figcaption"));
    let viewport = elements.iter().find(|e| get(e, "name").as_deref() == Some("viewport")).expect("a viewport");
    assert_eq!(get(viewport, "content").as_deref(), Some("width=device-width, initial-scale=1"));
    assert_eq!(get(&elements[0], "lang").as_deref(), Some("en"));
}

#[test]
fn a_report_is_whole_safe_and_the_same_when_rebuilt() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    std::fs::write(path("prompts.txt"), HOSTILE.join("\n")).unwrap();
    std::fs::write(
        path("dilated.yaml"),
        "name: dilated\ntitle: 'Dilated <by> 2 & more_%'\nsource: a test\nvariants:\n\
         - redilation: {tau: 1, of_steps: 2, dilation: {\"mid_block.**\": 2}}\n  attention_scale: {}\n",
    )
    .unwrap();
    let experiment = tiny("[direct-inf, dilated.yaml]\nquestion: Does <i>it</i> run at 100 %?\nprompts: {file: prompts.txt}")
        .replace("scales: [0.25]", "scales: [0.25, {factor: 0.5, width: 1, height: 0.5}]");
    std::fs::write(path("hostile.yaml"), experiment).unwrap();
    succeed(scalebench(&["sweep", &path("hostile.yaml"), "--out", &path("run")]));

    let read = |name: &str| std::fs::read_to_string(dir.path().join("run").join(name)).unwrap();
    let html = read("report/index.html");
    let elements = parse(&html);
    check_page(&elements);

    // Hostile prompts are text, whole, in heads and beside every image.
    let text = |name: &str| elements.iter().filter(|e| e.name == name).map(|e| e.text.clone()).collect::<Vec<_>>();
    for (i, prompt) in HOSTILE.iter().enumerate() {
        assert_eq!(text("bdi").iter().filter(|found| found == prompt).count(), 2, "{prompt}");
        let alt = |label: &str| format!("{label}: {prompt}, seed {i}");
        for label in ["Direct-Inf", "Dilated <by> 2 & more_%"] {
            let tiles = elements.iter().filter(|e| e.name == "img" && e.attributes["alt"] == alt(label));
            let parents: Vec<&str> = tiles.map(|e| e.parents.last().unwrap().as_str()).collect();
            assert_eq!(parents, ["button"; 2], "{label}: {prompt}");
        }
    }
    assert!(text("p").contains(&"Does <i>it</i> run at 100 %?".to_owned()));
    let heads: Vec<String> = elements.iter().filter(|e| e.name == "h2").map(|e| e.text.clone()).collect();
    assert_eq!(heads, ["Results", "Charts", "Samples", "What the methods do", "Provenance"]);

    // The record: every input by its digest, and the machine.
    let record = |name: &str| {
        let head = elements.iter().position(|e| e.name == "th" && e.text == name).unwrap_or_else(|| panic!("no {name}"));
        elements[head + 1].text.clone()
    };
    assert!(record("Machine").contains("thread") && record("Version").starts_with("scalebench "));
    assert!(record("Sampler").contains("steps: 2") && record("Images and seeds").contains("3 a cell"));
    let digest = |text: &str| text.split([' ', ',']).any(|word| word.len() >= 32 && word.chars().all(|c| c.is_ascii_hexdigit()));
    for name in ["Checkpoint tiny", "Feature network", "Prompts"] {
        assert!(digest(&record(name)), "{name}: {}", record(name));
    }

    // Two scales with two methods each and the published figures of Table 1 at neither.
    let table: Vec<&Element> = elements.iter().filter(|e| e.name == "th" && e.attributes["scope"] == "rowgroup").collect();
    assert_eq!(table.len(), 2);
    let best = elements.iter().filter(|e| e.attributes.get("class").is_some_and(|class| class == "best"));
    assert!(best.count() >= 4, "a best value for every column");

    // The middle is dilated in the first of two steps, and the page says so.
    let caption = elements.iter().filter(|e| e.name == "figcaption").map(|e| &e.text).find(|text| text.contains("re-dilated"));
    let caption = caption.expect("a described schedule");
    assert!(caption.contains("convolutions re-dilated by 2, step 1 of 2"), "{caption}");
    let svg = read("report/schedule-tiny-0.25x-dilated.svg");
    assert!(svg.contains("mid_block") && svg.contains("dilation 2, step 1") && html.contains(&svg));
    let schedule: serde_json::Value = serde_json::from_str(&read("cells/tiny/0.25x-dilated/schedule.json")).unwrap();
    let tracks = schedule["passes"][0]["convolutions"].as_array().unwrap();
    for track in tracks {
        let dilated = track["site"].as_str().unwrap().starts_with("mid_block.");
        let expected = serde_json::json!([{"from": 1, "to": 1, "action": {"dilation": 2.0}}]);
        assert_eq!(track.get("runs"), dilated.then_some(&expected), "{track}");
    }

    // LaTeX: braces and mathematics are closed, and every row has as many cells.
    let tex = read("report/table.tex");
    let plain = tex.replace("\\{", "").replace("\\}", "").replace("\\$", "");
    assert_eq!(plain.matches('{').count(), plain.matches('}').count(), "{tex}");
    assert_eq!(plain.matches('$').count() % 2, 0);
    assert!(tex.contains("Dilated \\textless{}by\\textgreater{} 2 \\& more\\_\\% & $"), "{tex}");
    assert!(tex.contains("\\mathbf{") && tex.contains("$0.25\\times$") && tex.contains("run at 100 \\%?"), "{tex}");
    let cells: BTreeSet<usize> = tex.lines().filter(|l| l.ends_with("\\\\")).map(|l| l.replace("\\&", "").matches('&').count()).collect();
    assert_eq!(cells.into_iter().collect::<Vec<_>>(), [5], "{tex}");
    assert!(read("report/table.md").contains("**"));

    check_site(dir.path());

    // A rebuilt report is the same report; one of a run without schedules says that it has none.
    succeed(scalebench(&["report", &path("run")]));
    assert!(read("report/index.html") == html, "a rebuilt page differs");
    for cell in ["0.25x-direct-inf", "0.25x-dilated", "0.5x-1by0.5-direct-inf", "0.5x-1by0.5-dilated"] {
        std::fs::remove_file(dir.path().join("run/cells/tiny").join(cell).join("schedule.json")).unwrap();
    }
    succeed(scalebench(&["report", &path("run")]));
    let without = read("report/index.html");
    check_page(&parse(&without));
    assert!(without.contains("This run keeps no record of it"));
}

/// The site of the run: of its directory, and of what is committed of one.
fn check_site(dir: &Path) {
    let path = |name: &str| dir.join(name).to_str().unwrap().to_owned();
    let folder = dir.join("kept/run");
    std::fs::create_dir_all(&folder).unwrap();
    for file in ["run.yaml", "results.csv", "timings.csv", "report/index.html"] {
        std::fs::copy(dir.join("run").join(file), folder.join(Path::new(file).file_name().unwrap())).unwrap();
    }
    std::fs::write(path("kept/site.yaml"), "title: Which <b>one</b>?\nruns: [run]\n").unwrap();
    let pages = |site: &str| -> BTreeMap<String, String> {
        let entries = std::fs::read_dir(dir.join(site)).unwrap().map(|entry| entry.unwrap().path());
        let name = |path: &Path| path.file_name().unwrap().to_str().unwrap().to_owned();
        entries
            .filter(|path| path.extension().is_some_and(|e| e == "html"))
            .map(|path| (name(&path), std::fs::read_to_string(&path).unwrap()))
            .collect()
    };
    succeed(scalebench(&["site", "--out", &path("site"), &path("run")]));
    let found = pages("site");
    succeed(scalebench(&["site", "--out", &path("site-of-kept"), &path("kept/site.yaml")]));
    let mut of_kept = pages("site-of-kept");
    assert!(of_kept["index.html"].contains("Which &lt;b&gt;one&lt;/b&gt;?"));
    of_kept.insert("index.html".to_owned(), found["index.html"].clone());
    assert!(found == of_kept, "a run and what was kept of it make different sites");

    for (name, page) in &found {
        let elements = parse(page);
        let is_file = |target: &str| {
            let (file, anchor) = target.split_once('#').unwrap_or((target, ""));
            let is_page = file.ends_with(".html")
                && found
                    .get(file)
                    .is_some_and(|page| anchor.is_empty() || file == "compare.html" || page.contains(&format!(" id=\"{anchor}\"")));
            is_page || file.starts_with("samples/") && dir.join("site").join(file).is_file()
        };
        check_any(&elements, &is_file);
        // The script's data is no markup either.
        let hostile = elements
            .iter()
            .any(|e| e.attributes.keys().any(|key| key.starts_with("on")) || e.attributes.get("src").is_some_and(|src| src == "x"));
        assert!(!hostile, "{name}");
    }
    let alt = format!("Dilated <by> 2 & more_%: {}, seed 0", HOSTILE[0]);
    for name in ["run-run.html", "method-dilated.html"] {
        let images = parse(&found[name]).into_iter().filter(|e| e.name == "img" && e.attributes["alt"] == alt).count();
        assert_eq!(images, 2, "{name}: a sample at each of two sizes");
    }
    let board = parse(&found["index.html"]);
    let methods: Vec<&str> = board.iter().filter_map(|e| e.attributes.get("data-method")).map(String::as_str).collect();
    assert_eq!(methods.iter().filter(|method| **method == "Dilated <by> 2 & more_%").count(), 2, "{methods:?}");
    // The heat map of the report is the one of the site.
    let svg = std::fs::read_to_string(dir.join("run/report/schedule-tiny-0.25x-dilated.svg")).unwrap();
    assert!(found["method-dilated.html"].contains(&svg) && found["run-run.html"].contains(&svg));

    // Another site replaces it, and nothing of the old one stays; a folder of other things is no place for one.
    std::fs::rename(dir.join("kept/run"), dir.join("kept/other")).unwrap();
    succeed(scalebench(&["site", "--out", &path("site"), &path("kept/other")]));
    let replaced = pages("site");
    assert!(replaced.contains_key("run-other.html") && !replaced.contains_key("run-run.html"));
    fail(scalebench(&["site", "--out", &path("kept"), &path("run")]), &["kept: holds other things than a site"]);
}
