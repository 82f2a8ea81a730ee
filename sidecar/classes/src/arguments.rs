//! What the arguments of a tool say about it.

use toolweir_crds::ToolClass::{self, Destructive, Execute, Financial, Read, Write};

use crate::{
    Evidence,
    lexicon::{self, among, only_looks},
    name::{self, Action},
    prose,
    schema::Property,
    words::{self, Word},
};

/// What is known of the tool before its arguments are read.
#[derive(Clone, Copy, Debug)]
pub struct Known<'a> {
    /// The action of the name.
    pub name: Option<&'a Action>,
    /// The action of the description.
    pub lead: Option<&'a Action>,
    /// Whether the description names a query language that can change something.
    pub language: bool,
    /// Whether the tool reads what others did or may do: its arguments choose among actions, and do none.
    pub history: bool,
    /// Whether the name tells what a `code` is.
    pub of_code: bool,
}

impl Known<'_> {
    fn verbs(&self) -> impl Iterator<Item = &str> {
        [self.name, self.lead].into_iter().flatten().map(|action| action.verb.as_str())
    }

    fn reads(&self) -> bool {
        self.name.is_some_and(|action| action.class == Read && action.firm)
    }

    /// Whether name and description both say that it reads, as far as they say anything, and one of them beyond doubt.
    fn only_reads(&self) -> bool {
        let said = || [self.name, self.lead].into_iter().flatten();
        said().all(|action| action.class == Read) && said().any(|action| action.firm)
    }
}

/// Properties that name what is done.
pub const SELECTORS: &str = "action actions operation operations op method verb command commands subcommand mode";
/// Properties that are run.
const COMMANDS: &str = "command commands cmd shell bash script scripts powershell exec";
/// Languages in which changes can be said.
const LANGUAGES: &str = "sql cypher ddl dml plsql sparql mutation";
/// Programs.
const PROGRAMS: &str = "code javascript python js snippet program";
/// Languages in which programs are written.
const RUN_LANGUAGES: &str = "python bash shell javascript js powershell ruby perl lua";
/// Verbs of arguments that leave nothing.
const ERASING: &str = "delete purge erase wipe destroy expunge shred obliterate nuke";
/// Files and folders.
const FILES: &str = "path file dir directory folder filename filepath";

/// How many sub-commands of a property are evidence: the worst ones.
const SELECTED: usize = 4;

/// What the arguments say, each with its evidence.
pub fn evidence(properties: &[Property<'_>], known: &Known<'_>) -> Vec<Evidence> {
    let mut found: Vec<_> = properties.iter().flat_map(|property| of_property(property, known)).collect();
    found.extend(money(properties));
    found.extend(request(properties));
    found
}

fn of_property(property: &Property<'_>, known: &Known<'_>) -> Vec<Evidence> {
    let filters = || {
        prose::sentences_of(property.description.unwrap_or_default())
            .iter()
            .flatten()
            .any(|word| among("filter filters", &word.lower))
    };
    if property.ends_with(SELECTORS) && !(known.reads() && (known.history || filters())) {
        let chosen = selected(property);
        if !chosen.is_empty() {
            return chosen;
        }
    }
    let found = query(property, known)
        .or_else(|| program(property, known))
        .or_else(|| destroys(property))
        .or_else(|| change(property, known));
    found.map(|(class, word)| named(property, word, class)).into_iter().collect()
}

/// What the name of an argument says. Only that word is shown: the rest is a stranger's prose.
fn named(property: &Property<'_>, word: &Word, class: ToolClass) -> Evidence {
    let text = property.name.get(word.span.clone()).unwrap_or_default().to_owned();
    Evidence { part: property.path.clone(), span: word.span.clone(), text, class }
}

/// The values of a sub-command, each with its class.
fn selected(property: &Property<'_>) -> Vec<Evidence> {
    let actions = property.values.iter().filter_map(|(path, value)| {
        let http = among("POST PUT PATCH", value);
        let actions = name::actions(&words::of_name(value)).into_iter();
        let action = actions.filter(|action| action.firm || http).max_by_key(|action| action.class)?;
        Evidence::of(path, value, action.span, action.class)
    });
    let mut found: Vec<_> = actions.collect();
    // What only chooses how to read says so of each of its values.
    if found.iter().all(|piece| piece.class == Read) && (found.len() < property.values.len() || property.ends_with("mode")) {
        found.clear();
    }
    found.sort_by_key(|piece| std::cmp::Reverse(piece.class));
    found.truncate(SELECTED);
    let Some(text) = property.description.filter(|_| property.values.is_empty()) else { return found };
    let path = format!("{}.description", property.path);
    let sentences = prose::sentences_of(text);
    // `list or delete`: no more than the values themselves.
    let short = sentences.iter().flatten().count() <= 6;
    for word in sentences.iter().flatten() {
        let http =
            property.ends_with("method") && text.get(word.span.clone()).is_some_and(|text| among("POST PUT PATCH DELETE", text));
        let quoted = text.get(..word.span.start).is_some_and(|before| before.ends_with(['\'', '"', '`']));
        let said = name::actions(&words::of_name(text.get(word.span.clone()).unwrap_or_default())).into_iter().next();
        let class = said.filter(|said| http || (quoted || short) && said.firm && said.class != Read).map(|said| said.class);
        found.extend(class.and_then(|class| Evidence::of(&path, text, word.span.clone(), class)));
    }
    found.sort_by_key(|piece| std::cmp::Reverse(piece.class));
    found.truncate(SELECTED);
    found
}

/// A query in a language that can also change something.
fn query<'a>(property: &'a Property<'_>, known: &Known<'_>) -> Option<(ToolClass, &'a Word)> {
    if property.boolean || known.verbs().any(only_looks) {
        return None;
    }
    if let Some(word) = property.one_of(LANGUAGES).filter(|_| property.values.is_empty()) {
        return Some((Execute, word));
    }
    let word = property.last_of("query queries statement statements q expression")?;
    let sentences = prose::sentences_of(property.description.unwrap_or_default());
    let here = prose::language(&sentences).is_some();
    let queries = known.name.is_none_or(|action| action.class > Read || among("query search", &action.verb));
    (here || known.language && queries).then_some((Execute, word))
}

/// A command or a program.
fn program<'a>(property: &'a Property<'_>, known: &Known<'_>) -> Option<(ToolClass, &'a Word)> {
    if property.boolean || !property.values.is_empty() || known.verbs().any(only_looks) {
        return None;
    }
    if let Some(word) = property.last_of(COMMANDS) {
        return Some((Execute, word));
    }
    let word = property.last_of(PROGRAMS).or_else(|| property.last_of("function expression"))?;
    let text = property.description.unwrap_or_default();
    let sentences = prose::sentences_of(text);
    let says = |words: &str| sentences.iter().flatten().any(|word| among(words, &word.lower));
    let code = property.ends_with("code source snippet");
    let language = property.words.len() > 1 && code && property.has(RUN_LANGUAGES);
    // `code` alone, of which nothing is said: that of a country has a tool that says so.
    let bare = property.words.len() == 1 && word.lower == "code" && text.trim().is_empty() && !known.of_code;
    let evaluated = says("eval evaluated evaluate evaluates") && (says(RUN_LANGUAGES) || says("eval code lambda"));
    (language || bare || evaluated || says("execute executed run")).then_some((Execute, word))
}

/// `delete`, `purge`, `delete_matches`: what the tool also does where its caller asks for it.
fn destroys<'a>(property: &'a Property<'_>) -> Option<(ToolClass, &'a Word)> {
    let last = property.words.last()?;
    let first = property.words.first()?;
    let second = property.words.get(1).map_or("", |word| word.lower.as_str());
    let thing =
        among("marker markers flag protection time date at log logs event events permission by id key url token link", second);
    if among(ERASING, &first.lower) && !thing {
        return Some((Destructive, first));
    }
    let asks = !property.begins_with("can is has include show only with allow no skip exclude filter before on");
    if !property.boolean || !asks {
        return None;
    }
    if among(ERASING, &last.lower) {
        return Some((Destructive, last));
    }
    let whole = property.words.len() == 1 || among("all after matches matching existing source original it them", second);
    (whole && among("remove drop clear flush kill terminate revoke uninstall reset prune", &first.lower))
        .then_some((Destructive, first))
}

/// A method of HTTP that the caller words, beside a body.
fn request(properties: &[Property<'_>]) -> Option<Evidence> {
    let body = properties.iter().any(|property| property.ends_with("body payload data json"));
    let free = properties.iter().find(|property| {
        let http = property.words.len() == 1 || property.has("http request");
        property.ends_with("method verb") && http && property.values.is_empty() && !property.boolean
    })?;
    let word = free.words.last().filter(|_| body)?;
    Some(named(free, word, Execute))
}

/// What only a tool that changes something needs. A place where a reading tool may save what it has read changes nothing else.
fn change<'a>(property: &'a Property<'_>, known: &Known<'_>) -> Option<(ToolClass, &'a Word)> {
    let words: Vec<_> = property.words.iter().map(|word| word.lower.as_str()).collect();
    let trial = matches!(words.as_slice(), ["dry", "run"] | ["dryrun"] | ["overwrite", ..]);
    let confirmed = property.boolean && property.begins_with("confirm confirmed confirmation");
    let output = property.begins_with("output save dest destination out") && property.ends_with(FILES);
    let saved = || {
        let sentences = prose::sentences_of(property.description.unwrap_or_default());
        let mut words = sentences.iter().flatten().map(|word| word.lower.as_str());
        words.any(|word| among("save saved saves written", word))
    };
    let may_save = !property.required && known.only_reads();
    let place = !may_save && (output || property.ends_with(FILES) && !property.has("json x") && saved());
    let forced = property.boolean
        && (words == ["force"] && !refreshes(property)
            || words.first() == Some(&"force") && {
                let forced = words.get(1).and_then(|word| lexicon::entry(word));
                forced.is_some_and(|entry| entry.class > Read)
                    && !among("refresh sync reload update", words.get(1).unwrap_or(&""))
            });
    let word = if place { property.words.last() } else { property.words.first() };
    word.filter(|_| trial || confirmed || place || forced).map(|word| (Write, word))
}

/// `force` that only passes by a cache.
fn refreshes(property: &Property<'_>) -> bool {
    let sentences = prose::sentences_of(property.description.unwrap_or_default());
    let words = "refresh cache cached refetch reload bypass fresh";
    sentences.iter().flatten().any(|word| among(words, &word.lower))
}

/// An amount of a currency, or one for somebody.
fn money(properties: &[Property<'_>]) -> Option<Evidence> {
    let amount = properties
        .iter()
        .find(|property| property.ends_with("amount cents") && !property.begins_with("unit min max minimum maximum"))?;
    let with = "currency recipient payee beneficiary wallet iban payment";
    properties
        .iter()
        .any(|property| property.has(with))
        .then(|| amount.words.last().map(|word| named(amount, word, Financial)))?
}
