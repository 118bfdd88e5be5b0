//! Reads the machine's apt sources, in both of apt's formats, to learn which Debian mirror it uses.

/// One `deb` archive of one suite.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// Where the archive is.
    pub uri: String,
    /// Suite, such as `bookworm`.
    pub suite: String,
    /// Components, such as `main`.
    pub components: Vec<String>,
    /// Key file that signs it, when the source names one.
    pub signed_by: Option<String>,
}

/// Parses a `*.list` file: one archive a line, `deb [options] uri suite components`.
#[must_use]
pub fn parse_list(text: &str) -> Vec<Source> {
    text.lines().filter_map(parse_line).collect()
}

fn parse_line(line: &str) -> Option<Source> {
    let line = line.split('#').next()?.trim();
    let mut rest = line.strip_prefix("deb")?.strip_prefix([' ', '\t'])?.trim_start();
    let mut signed_by = None;
    if let Some(options) = rest.strip_prefix('[') {
        let (options, after) = options.split_once(']')?;
        signed_by = options.split_whitespace().find_map(|option| option.strip_prefix("signed-by=")).map(String::from);
        rest = after;
    }
    let mut words = rest.split_whitespace().map(String::from);
    Some(Source { uri: words.next()?, suite: words.next()?, components: words.collect(), signed_by })
}

/// Parses a `*.sources` file (deb822): paragraphs of fields, each field may span indented lines.
#[must_use]
pub fn parse_deb822(text: &str) -> Vec<Source> {
    let mut sources = Vec::new();
    let mut fields: Vec<(String, String)> = Vec::new();
    for line in text.lines().chain([""]) {
        if line.starts_with('#') {
            continue;
        }
        if line.trim().is_empty() {
            sources.extend(paragraph(&fields));
            fields.clear();
        } else if line.starts_with([' ', '\t']) {
            if let Some((_, value)) = fields.last_mut() {
                value.push('\n');
                value.push_str(line.trim());
            }
        } else if let Some((name, value)) = line.split_once(':') {
            fields.push((name.trim().to_ascii_lowercase(), value.trim().to_owned()));
        }
    }
    sources
}

fn paragraph(fields: &[(String, String)]) -> Vec<Source> {
    let field = |name: &str| fields.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str());
    let words = |name: &str| field(name).unwrap_or_default().split_whitespace().map(String::from).collect::<Vec<_>>();
    if field("enabled").is_some_and(|value| value.eq_ignore_ascii_case("no")) || !words("types").contains(&"deb".into())
    {
        return Vec::new();
    }
    // A key given inline (armoured text) is of no use for another suite; a path is.
    let signed_by = field("signed-by").filter(|value| value.starts_with('/')).map(String::from);
    let mut sources = Vec::new();
    for uri in words("uris") {
        for suite in words("suites") {
            sources.push(Source {
                uri: uri.clone(),
                suite,
                components: words("components"),
                signed_by: signed_by.clone(),
            });
        }
    }
    sources
}

/// The source that is the distribution's main Debian archive: it serves the installed release (`codename`) itself, or
/// its address ends in `/debian`.
#[must_use]
pub fn debian_mirror<'a>(sources: &'a [Source], codename: Option<&str>) -> Option<&'a Source> {
    let main = |source: &&Source| source.components.iter().any(|component| component == "main");
    let aliases = ["stable", "oldstable", "testing", "unstable", "sid"];
    sources.iter().filter(main).find(|source| source.uri.trim_end_matches('/').ends_with("/debian")).or_else(|| {
        sources
            .iter()
            .filter(main)
            .find(|source| Some(source.suite.as_str()) == codename || aliases.contains(&source.suite.as_str()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "/usr/share/keyrings/archive.gpg";

    #[test]
    fn reads_one_line_sources() {
        let text = "# comment\ndeb-src http://m.example/debian bookworm main\n\
                    deb [arch=amd64 signed-by=/usr/share/keyrings/archive.gpg] http://m.example/debian/ bookworm main contrib # x\n\
                    deb http://m.example/security bookworm-security main\n\n";
        let sources = parse_list(text);
        assert_eq!(sources.len(), 2);
        assert_eq!(sources[0].uri, "http://m.example/debian/");
        assert_eq!(sources[0].components, ["main", "contrib"]);
        assert_eq!(sources[0].signed_by.as_deref(), Some(KEY));
        assert_eq!(debian_mirror(&sources, None), Some(&sources[0]));
    }

    #[test]
    fn reads_deb822_sources() {
        let text = "Types: deb deb-src\n# snapshot\nURIs: http://m.example/debian\nSuites: bookworm bookworm-updates\n\
                    Components: main\nSigned-By: /usr/share/keyrings/archive.gpg\n\n\
                    Types: deb\nURIs: http://m.example/other\n\thttp://n.example/other\nSuites: x\nComponents: main\n\
                    Signed-By:\n -----BEGIN PGP PUBLIC KEY BLOCK-----\n .\n\n\
                    Enabled: no\nTypes: deb\nURIs: http://off.example/debian\nSuites: bookworm\nComponents: main\n";
        let sources = parse_deb822(text);
        let suites: Vec<_> = sources.iter().map(|source| (source.uri.as_str(), source.suite.as_str())).collect();
        assert_eq!(
            suites,
            [
                ("http://m.example/debian", "bookworm"),
                ("http://m.example/debian", "bookworm-updates"),
                ("http://m.example/other", "x"),
                ("http://n.example/other", "x"),
            ]
        );
        assert_eq!(sources[0].signed_by.as_deref(), Some(KEY));
        assert_eq!(sources[2].signed_by, None);
    }

    #[test]
    fn finds_a_mirror_by_the_installed_release() {
        let sources = parse_list(
            "deb http://m.example/third-party/apt bookworm tools\ndeb mirror+file:/etc/apt/mirrors/list bookworm main\n",
        );
        assert_eq!(debian_mirror(&sources, Some("bookworm")), Some(&sources[1]));
        assert_eq!(debian_mirror(&sources, Some("noble")), None);
    }
}
