//! The names of requests.

/// Characters of the random part: no vowels, which make words, and none that look alike.
const ALPHABET: [char; 27] = [
    '2', '3', '4', '5', '6', '7', '8', '9', 'b', 'c', 'd', 'f', 'g', 'h', 'j', 'k', 'm', 'n', 'p', 'q', 'r', 's', 't', 'v', 'w',
    'x', 'z',
];

/// Characters of the random part.
const RANDOM: usize = 10;

/// Bytes of the part that tells the tool.
const SLUG: usize = 40;

/// The name of a request for a call of a tool: a DNS label.
pub(crate) fn of(tool: &str, random: u64) -> String {
    let mut name = slug(tool);
    name.push('-');
    let mut rest = random;
    for _ in 0..RANDOM {
        // Below 27.
        let digit = usize::try_from(rest % ALPHABET.len() as u64).unwrap_or_default();
        name.extend(ALPHABET.get(digit));
        rest /= ALPHABET.len() as u64;
    }
    name
}

/// The name of a tool in lower case, with a dash for each run of other characters than letters and digits of ASCII.
fn slug(tool: &str) -> String {
    let mut slug = String::new();
    for c in tool.chars() {
        if slug.len() >= SLUG {
            break;
        }
        if c.is_ascii_alphanumeric() {
            slug.push(c.to_ascii_lowercase());
        } else if !slug.is_empty() && !slug.ends_with('-') {
            slug.push('-');
        }
    }
    let slug = slug.trim_end_matches('-');
    if slug.is_empty() { "call".to_owned() } else { slug.to_owned() }
}

/// Whether a text is a name of a request.
pub(crate) fn is_one(name: &str) -> bool {
    name.rsplit_once('-').is_some_and(|(tool, random)| {
        slug(tool) == tool && random.chars().count() == RANDOM && random.chars().all(|c| ALPHABET.contains(&c))
    })
}
