//! What a tool can do, as its definition says.
//!
//! [`classify`] reads the definition of a tool as its server lists it, and says to which class it belongs, with the words that say so. It
//! is a pure function: the same definition always has the same class. How it works:
//!
//! 1. The first verb of the name (`name.rs`), or else of the title, and the first verbs of the description (`prose.rs`) speak for classes.
//!    The words that it knows stand in `lexicon.rs`. A firm word (`delete`) counts more than one that may be a noun (`post`); of two firm
//!    words the worse counts.
//! 2. What the description says of the tool later on ("permanently deletes"), and the arguments (`schema.rs`, `arguments.rs`: `sql`,
//!    `command`, `dry_run`, the sub-commands of `action`) make it worse, never better. One thing is better than its words: a query that runs
//!    where the text says that it only reads, and says nothing against that.
//! 3. The server's annotations make it worse, never better.
//! 4. What nothing speaks for is [`ToolClass::Unknown`].
//!
//! It reads the first 512 bytes of each name and title, the first 16 KiB of the description, and at most 256 properties with 2 KiB of each
//! one's description: a definition of any size takes a few milliseconds. A definition that is longer, or whose letters are not what they
//! seem (`unread.rs`), is [`ToolClass::Unknown`].

mod arguments;
mod effects;
mod lexicon;
mod name;
mod promise;
mod prose;
mod schema;
mod unread;
mod why;
mod words;

use std::ops::Range;

use serde_json::Value;
use toolweir_crds::{
    ToolClass::{self, Destructive, Execute, Financial, Read, Unknown, Write},
    ToolSeverity,
};

use crate::{
    arguments::Known,
    name::Action,
    schema::Property,
    words::{PROSE_BYTES, Word},
};

/// In a name: what the tool tells of is the actions of others.
const ACTIONS_OF_OTHERS: &str = "log logs audit event events history activity activities permission permissions";
/// In a name: things that have a code, and tools that look at one.
const CODES: &str = "country countries currency airport airline language postal zip error status product stock icd iata icao unit city region state \
    address location barcode code codes symbol station coupon course diagnosis review analyze analyse lookup";
/// How many pieces of evidence a classification has at most.
const EVIDENCE: usize = 32;

/// A tool as its server lists it.
#[derive(Clone, Copy, Debug, Default)]
pub struct ToolDefinition<'a> {
    /// The name.
    pub name: &'a str,
    /// The title for people.
    pub title: Option<&'a str>,
    /// The description that the model reads.
    pub description: Option<&'a str>,
    /// The JSON schema of the arguments.
    pub input_schema: Option<&'a Value>,
    /// The server's own hints.
    pub annotations: ToolAnnotations,
}

/// The hints of a server on its tool. They may lie.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ToolAnnotations {
    /// `readOnlyHint`
    pub read_only: Option<bool>,
    /// `destructiveHint`
    pub destructive: Option<bool>,
}

/// Words of a definition that speak for a class.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Evidence {
    /// Where they stand: `name`, `title`, `description`, `inputSchema.properties.NAME`, `annotations.destructiveHint`. A property stands for
    /// its name.
    pub part: String,
    /// The bytes of that text.
    pub span: Range<usize>,
    /// The words themselves: exactly these bytes.
    pub text: String,
    /// The class for which they speak.
    pub class: ToolClass,
}

impl Evidence {
    fn of(part: &str, text: &str, span: Range<usize>, class: ToolClass) -> Option<Self> {
        Some(Self { part: part.to_owned(), text: text.get(span.clone())?.to_owned(), span, class })
    }
}

/// The class of a tool, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Classification {
    /// The class.
    pub class: ToolClass,
    /// What speaks for it, the strongest first, then what speaks for others. Empty for [`ToolClass::Unknown`].
    pub evidence: Vec<Evidence>,
    /// Why the definition was not read whole, if it was not. The class is [`ToolClass::Unknown`] then.
    pub unread: Option<&'static str>,
}

impl Classification {
    /// How much harm a call can do.
    pub fn severity(&self) -> ToolSeverity {
        self.class.severity()
    }

    /// Why, in one line for people: at most three pieces and about a hundred characters, without control characters.
    pub fn why(&self) -> String {
        why::line(self)
    }
}

/// Says what a tool can do.
pub fn classify(definition: &ToolDefinition<'_>) -> Classification {
    let arguments = definition.input_schema.map(schema::arguments).unwrap_or_default();
    if let Some(reason) = unread::reason(definition, &arguments) {
        return Classification { class: Unknown, evidence: Vec::new(), unread: Some(reason) };
    }
    let text = Text::of(definition);
    let mut evidence = Vec::new();
    let mut class = said(definition, &text, &mut evidence);
    let known = text.known();
    let properties = &arguments.properties;
    class = with_arguments(class, &text, arguments::evidence(properties, &known), &mut evidence);
    class = only_reading(class, definition, &text, properties, &mut evidence);
    class = annotated(class, definition.annotations, &mut evidence);
    if class == Unknown {
        evidence.clear();
    }
    // The class first; the order is stable within.
    evidence.sort_by_key(|piece| (piece.class != class, std::cmp::Reverse(piece.class)));
    evidence.truncate(EVIDENCE);
    Classification { class, evidence, unread: None }
}

/// The texts of a definition, read.
struct Text {
    sentences: Vec<Vec<Word>>,
    name: Vec<Action>,
    title: Vec<Action>,
    lead: Vec<Action>,
    history: bool,
    of_code: bool,
    words: Vec<Word>,
}

impl Text {
    fn of(definition: &ToolDefinition<'_>) -> Self {
        let sentences = words::sentences(definition.description.unwrap_or_default());
        let words: Vec<_> = words::of_name(definition.name).into_iter().filter(|word| word.lower != "tool").collect();
        let mut lead = prose::lead(&sentences);
        let name = actions(&words, &sentences, &lead);
        let title = actions(&words::of_name(definition.title.unwrap_or_default()), &sentences, &lead);
        // Where the name reads, a later sentence tells of the course of things: "Stops after a minute".
        let reads = name.first().is_some_and(|action| action.firm && action.class == Read);
        let course = |action: &Action| matches!(action.class, Write | Execute) && prose::is_later(&sentences, action);
        if reads && lead.first().is_some_and(course) && !lead.iter().any(|action| action.class > Execute) {
            lead.clear();
        }
        let history = words.iter().any(|word| lexicon::among(ACTIONS_OF_OTHERS, &word.lower));
        let of_code = words.iter().any(|word| lexicon::among(CODES, &word.lower));
        Self { sentences, name, title, lead, history, of_code, words }
    }

    fn known(&self) -> Known<'_> {
        Known {
            name: self.name.first().or_else(|| self.title.first()),
            lead: self.lead.first(),
            language: prose::language(&self.sentences).is_some(),
            history: self.history,
            of_code: self.of_code,
        }
    }
}

/// Whether a description begins with a verb that reads beyond doubt. What a tool returns is not all that it does.
fn shows(action: &Action) -> bool {
    action.class == Read && action.firm && action.verb != "return"
}

/// The actions of a name or title, but for those behind a verb that is not known: a tool `foo_query` that "foos a query" does not query. The
/// first word of `commit_details` is no verb where the description shows something.
fn actions(words: &[Word], sentences: &[Vec<Word>], lead: &[Action]) -> Vec<Action> {
    let mut actions = name::actions(words);
    let Some(first) = actions.first() else { return actions };
    if name::is_of_things(words) && lead.first().is_some_and(shows) {
        return actions.split_off(1);
    }
    let mut before = words.iter().take_while(|word| word.span.start < first.span.start);
    if before.any(|word| prose::unknown_verb(sentences, &word.lower)) { Vec::new() } else { actions }
}

/// What name, title and description say.
fn said(definition: &ToolDefinition<'_>, text: &Text, evidence: &mut Vec<Evidence>) -> ToolClass {
    let description = definition.description.unwrap_or_default();
    let mut add = |part: &str, whole: &str, actions: &[Action]| {
        for piece in actions.iter().filter_map(|action| Evidence::of(part, whole, action.span.clone(), action.class)) {
            // A first sentence can also state what is worse.
            if !evidence.contains(&piece) {
                evidence.push(piece);
            }
        }
    };
    let named = if text.name.is_empty() { &text.title } else { &text.name };
    let mut lead = text.lead.clone();
    // "Executes a log query" is what a tool called query_logs does to read.
    let reads = named.first().is_some_and(|action| action.firm && action.class == Read);
    if reads && prose::language(&text.sentences).is_none() && lead.first().is_some_and(prose::runs) {
        lead.remove(0);
    }
    let class = settled(named, &lead);
    add("name", definition.name, &text.name);
    add("title", definition.title.unwrap_or_default(), &text.title);
    let statements = prose::statements(&text.sentences);
    add("description", description, &lead);
    add("description", description, &statements);
    let titled = text.title.iter().filter(|action| action.firm && action.class > Read);
    let worse = statements.iter().chain(titled).map(|action| action.class).max();
    worse.map_or(class, |worse| if class == Unknown { worse } else { class.max(worse) })
}

/// The class of which a name's actions and a description's speak together.
fn settled(named: &[Action], lead: &[Action]) -> ToolClass {
    let worst =
        |actions: &[Action], firm: bool| actions.iter().filter(|action| action.firm || !firm).map(|action| action.class).max();
    let firm = worst(named, true).max(worst(lead, true));
    let vague = worst(named, false).max(worst(lead, false));
    let returns = lead.first().is_some_and(|action| action.verb == "return");
    match firm {
        // `post_message`, "Returns the message": what it returns is not all that it does.
        Some(Read) if returns && worst(named, true).is_none() && !named.iter().any(|action| action.class == Read) => {
            vague.unwrap_or(Read)
        }
        Some(class) => class,
        None => vague.unwrap_or(Unknown),
    }
}

/// What the arguments add.
fn with_arguments(class: ToolClass, text: &Text, arguments: Vec<Evidence>, evidence: &mut Vec<Evidence>) -> ToolClass {
    let vague = !text.name.iter().chain(&text.lead).any(|action| action.firm);
    // An amount is one of money only where something changes.
    let counts = |piece: &Evidence| piece.class != Financial || matches!(class, Write | Execute);
    let arguments: Vec<_> = arguments.into_iter().filter(counts).collect();
    let worst = arguments.iter().map(|piece| piece.class).max();
    evidence.extend(arguments);
    match worst {
        // The sub-commands say what `manage` does.
        Some(Read) if class == Unknown || vague => Read,
        Some(worst) if class == Unknown => worst,
        Some(worst) => class.max(worst),
        None => class,
    }
}

/// A query that runs where the text says that it only reads; a tool that calls itself read-only and says nothing else.
fn only_reading(
    class: ToolClass,
    definition: &ToolDefinition<'_>,
    text: &Text,
    properties: &[Property<'_>],
    evidence: &mut Vec<Evidence>,
) -> ToolClass {
    let description = words::beginning(definition.description.unwrap_or_default(), PROSE_BYTES);
    let claim = match class {
        Execute if evidence.iter().all(queries) => promise::only_reads(&text.words, description, &text.sentences, properties),
        Unknown => promise::calls_itself_read_only(description, &text.sentences),
        _ => None,
    };
    match claim.and_then(|span| Evidence::of("description", description, span, Read)) {
        Some(piece) => {
            evidence.push(piece);
            Read
        }
        None => class,
    }
}

/// Whether the evidence is that of a query, and of nothing that commands.
fn queries(piece: &Evidence) -> bool {
    let text = piece.text.to_lowercase();
    let command = ["command", "cmd", "script", "shell", "code", "invoke", "trigger", "eval", "evaluate", "call", "exec"];
    piece.class == Read
        || piece.class == Execute && !command.iter().any(|word| words::of_name(&text).iter().any(|found| found.lower == *word))
}

/// What the server's hints add.
fn annotated(class: ToolClass, hints: ToolAnnotations, evidence: &mut Vec<Evidence>) -> ToolClass {
    let mut raise = |name: &str, text: &str, to: ToolClass| {
        evidence.extend(Evidence::of(&format!("annotations.{name}"), text, 0..text.len(), to));
        to
    };
    let mut class = class;
    if hints.read_only == Some(false) && class != Unknown {
        class = class.max(raise("readOnlyHint", "false", Write));
    }
    if hints.destructive == Some(true) {
        let to = raise("destructiveHint", "true", Destructive);
        class = if class == Unknown { to } else { class.max(to) };
    }
    class
}
