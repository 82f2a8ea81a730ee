//! What the arguments of a tool say about it.

use toolweir_crds::ToolClass::{self, Execute, Financial, Read, Write};

use crate::{
    Evidence,
    lexicon::{among, only_looks},
    name::{self, Action},
    prose,
    schema::Property,
    words,
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
const SELECTORS: &str = "action actions operation operations op method verb command commands subcommand mode";
/// Properties that are run.
const COMMANDS: &str = "command commands cmd shell bash script scripts powershell";
/// Languages in which changes can be said.
const LANGUAGES: &str = "sql cypher ddl dml plsql sparql mutation";
/// Programs.
const PROGRAMS: &str = "code javascript python js snippet program";
/// Files and folders.
const FILES: &str = "path file dir directory folder filename filepath";

/// How many sub-commands of a property are evidence: the worst ones.
const SELECTED: usize = 4;

/// What the arguments say, each with its evidence.
pub fn evidence(properties: &[Property<'_>], known: &Known<'_>) -> Vec<Evidence> {
    let mut found: Vec<_> = properties.iter().flat_map(|property| of_property(property, known)).collect();
    found.extend(money(properties));
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
    let class = query(property, known).or_else(|| program(property, known)).or_else(|| change(property, known));
    class.map(|class| named(property, class)).into_iter().collect()
}

fn named(property: &Property<'_>, class: ToolClass) -> Evidence {
    Evidence { part: property.path.clone(), span: 0..property.name.len(), text: property.name.to_owned(), class }
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
    for word in prose::sentences_of(text).iter().flatten() {
        let http =
            property.ends_with("method") && text.get(word.span.clone()).is_some_and(|text| among("POST PUT PATCH DELETE", text));
        let quoted = text.get(..word.span.start).is_some_and(|before| before.ends_with(['\'', '"', '`']));
        let said = name::actions(&words::of_name(text.get(word.span.clone()).unwrap_or_default())).into_iter().next();
        let class = said.filter(|said| http || quoted && said.firm && said.class != Read).map(|said| said.class);
        found.extend(class.and_then(|class| Evidence::of(&path, text, word.span.clone(), class)));
    }
    found.sort_by_key(|piece| std::cmp::Reverse(piece.class));
    found.truncate(SELECTED);
    found
}

/// A query in a language that can also change something.
fn query(property: &Property<'_>, known: &Known<'_>) -> Option<ToolClass> {
    if property.boolean || known.verbs().any(only_looks) {
        return None;
    }
    if property.has(LANGUAGES) && property.values.is_empty() {
        return Some(Execute);
    }
    let sentences = prose::sentences_of(property.description.unwrap_or_default());
    let here = prose::language(&sentences).is_some();
    let runs = sentences.iter().flatten().any(|word| among("execute executed run executes runs", &word.lower));
    let queries = known.name.is_none_or(|action| action.class > Read || among("query search", &action.verb));
    let worded = property.ends_with("query queries statement statements q expression");
    (worded && (here && (runs || queries) || known.language && queries)).then_some(Execute)
}

/// A command or a program.
fn program(property: &Property<'_>, known: &Known<'_>) -> Option<ToolClass> {
    if property.boolean || !property.values.is_empty() || known.verbs().any(only_looks) {
        return None;
    }
    let sentences = prose::sentences_of(property.description.unwrap_or_default());
    let runs = || sentences.iter().flatten().any(|word| among("execute executed run", &word.lower));
    let program = property.ends_with(PROGRAMS) || property.ends_with("function expression");
    (property.ends_with(COMMANDS) || program && runs()).then_some(Execute)
}

/// What only a tool that changes something needs. A place where a reading tool may save what it has read changes nothing else.
fn change(property: &Property<'_>, known: &Known<'_>) -> Option<ToolClass> {
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
    (trial || confirmed || place).then_some(Write)
}

/// An amount of a currency, or one for somebody.
fn money(properties: &[Property<'_>]) -> Option<Evidence> {
    let amount = properties
        .iter()
        .find(|property| property.ends_with("amount cents") && !property.begins_with("unit min max minimum maximum"))?;
    let with = "currency recipient payee beneficiary wallet iban payment";
    properties.iter().any(|property| property.has(with)).then(|| named(amount, Financial))
}
