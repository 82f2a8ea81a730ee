//! Operators and functions on values that a call brings: the same as the library's, charged before they do their work.

use std::{
    cmp::Ordering,
    sync::{Arc, LazyLock},
};

use cel::{
    Env, ExecutionError,
    common::{
        types::{
            BOOL_TYPE, BYTES_TYPE, CelBool, CelBytes, CelDouble, CelInt, CelList, CelMap, CelMapKey, CelString, CelType, CelUInt,
            DOUBLE_TYPE, DYN_TYPE, INT_TYPE, LIST_TYPE, MAP_TYPE, NULL_TYPE, STRING_TYPE, TYPE_TYPE, UINT_TYPE,
        },
        value::{CowVal, Val},
    },
};

use super::{
    conversions::{double_to_text, text_to_bool, text_to_double, text_to_uint},
    pattern::Pattern,
    work::{Spent, charge, units},
};

/// The units of work for making a value, in addition to its bytes.
const VALUE: u64 = 60;

/// The environment in which expressions are evaluated.
pub static ENV: LazyLock<Arc<Env>> = LazyLock::new(|| Arc::new(env()));

/// The library's own, to which conversions are handed on.
static LIBRARY: LazyLock<Env> = LazyLock::new(Env::stdlib);

static TRUE: LazyLock<CelBool> = LazyLock::new(|| CelBool::from(true));
static FALSE: LazyLock<CelBool> = LazyLock::new(|| CelBool::from(false));

type Args<'b, 'v> = Vec<CowVal<'b, 'v>>;
type CelResult<'b, 'v> = Result<CowVal<'b, 'v>, ExecutionError>;

/// Charges the expression. Its caller finds that the budget is spent, and does not show this error.
fn pay(units: u64) -> Result<(), ExecutionError> {
    charge(units).map_err(|Spent| ExecutionError::function_error("budget", "is spent"))
}

fn truth<'b, 'v>(holds: bool) -> CowVal<'b, 'v> {
    CowVal::Borrowed(if holds { &*TRUE } else { &*FALSE })
}

fn no_overload(function: &str, values: &[&dyn Val]) -> ExecutionError {
    ExecutionError::no_such_overload(function, values.iter().map(|value| value.get_type().name().to_owned()).collect())
}

fn one<'b, 'v>(args: Args<'b, 'v>) -> CelResult<'b, 'v> {
    args.into_iter().next().ok_or(ExecutionError::InvalidArgumentCount { expected: 1, actual: 0 })
}

fn two<'b, 'v>(args: Args<'b, 'v>) -> Result<[CowVal<'b, 'v>; 2], ExecutionError> {
    let actual = args.len();
    args.try_into().map_err(|_| ExecutionError::InvalidArgumentCount { expected: 2, actual })
}

/// Returns the number of bytes of a text.
fn text_len(value: &dyn Val) -> Option<usize> {
    let bytes = || value.downcast_ref::<CelBytes>().map(|bytes| bytes.inner().len());
    value.downcast_ref::<CelString>().map(|text| text.inner().len()).or_else(bytes)
}

fn is_number(value: &dyn Val) -> bool {
    value.downcast_ref::<CelInt>().is_some()
        || value.downcast_ref::<CelDouble>().is_some()
        || value.downcast_ref::<CelUInt>().is_some()
}

/// Returns true if a map can have it as a key.
fn is_key(value: &dyn Val) -> bool {
    is_number(value) || value.downcast_ref::<CelString>().is_some() || value.downcast_ref::<CelBool>().is_some()
}

/// Charges a copy of a value. Texts that the request spells without escapes are not copied, but lent.
fn pay_copy(value: &dyn Val) -> Result<(), ExecutionError> {
    pay(VALUE)?;
    if let Some(text) = value.downcast_ref::<CelString>() {
        pay_copy_text(text)
    } else if let Some(bytes) = value.downcast_ref::<CelBytes>() {
        pay(if bytes.as_borrowed().is_some() { 0 } else { units(bytes.inner().len()) })
    } else if let Some(list) = value.downcast_ref::<CelList>() {
        list.inner().iter().try_for_each(|item| pay_copy(item.as_ref()))
    } else if let Some(map) = value.downcast_ref::<CelMap>() {
        map.inner().iter().try_for_each(|(key, value)| {
            pay(VALUE)?;
            if let CelMapKey::String(key) = key {
                // The key is hashed.
                pay(units(key.inner().len()))?;
                pay_copy_text(key)?;
            }
            pay_copy(value.as_ref())
        })
    } else {
        Ok(())
    }
}

fn pay_copy_text(text: &CelString<'_>) -> Result<(), ExecutionError> {
    pay(if text.as_borrowed().is_some() { 0 } else { units(text.inner().len()) })
}

/// Charges a comparison of two values for equality.
fn pay_equal(a: &dyn Val, b: &dyn Val) -> Result<(), ExecutionError> {
    pay(32)?;
    match (text_len(a), text_len(b)) {
        (Some(a), Some(b)) if a == b => return pay(units(a) / 8),
        (None, None) => {}
        _ => return Ok(()),
    }
    if let (Some(a), Some(b)) = (a.downcast_ref::<CelList>(), b.downcast_ref::<CelList>())
        && a.inner().len() == b.inner().len()
    {
        return a.inner().iter().zip(b.inner()).try_for_each(|(a, b)| pay_equal(a.as_ref(), b.as_ref()));
    }
    if let (Some(a), Some(b)) = (a.downcast_ref::<CelMap>(), b.downcast_ref::<CelMap>())
        && a.inner().len() == b.inner().len()
    {
        return a.inner().iter().try_for_each(|(key, value)| {
            pay(VALUE)?;
            if let CelMapKey::String(key) = key {
                pay(2 * units(key.inner().len()))?;
            }
            b.inner().get(key).map_or(Ok(()), |other| pay_equal(value.as_ref(), other.as_ref()))
        });
    }
    Ok(())
}

fn equal<'b, 'v>(args: Args<'b, 'v>) -> CelResult<'b, 'v> {
    let [a, b] = two(args)?;
    pay_equal(a.as_ref(), b.as_ref())?;
    Ok(truth(a.as_ref().equals(b.as_ref())))
}

fn not_equal<'b, 'v>(args: Args<'b, 'v>) -> CelResult<'b, 'v> {
    let [a, b] = two(args)?;
    pay_equal(a.as_ref(), b.as_ref())?;
    Ok(truth(!a.as_ref().equals(b.as_ref())))
}

/// Compares two values; `None` where one of them is NaN, which is neither less nor greater than anything. The error for values
/// of two kinds names their types: the library's would hold copies of the values.
fn compare(operator: &str, args: Args<'_, '_>) -> Result<Option<Ordering>, ExecutionError> {
    let [a, b] = two(args)?;
    let (a, b) = (a.as_ref(), b.as_ref());
    if let (Some(a), Some(b)) = (text_len(a), text_len(b)) {
        pay(units(a.min(b)) / 8)?;
    }
    if [a, b].iter().any(|side| side.downcast_ref::<CelDouble>().is_some_and(|number| number.inner().is_nan())) {
        return Ok(None);
    }
    if a.get_type() != b.get_type() && !(is_number(a) && is_number(b)) {
        return Err(no_overload(operator, &[a, b]));
    }
    a.as_comparer().ok_or_else(|| no_overload(operator, &[a, b]))?.compare(b).map(Some)
}

fn less<'b, 'v>(args: Args<'b, 'v>) -> CelResult<'b, 'v> {
    compare("_<_", args).map(|order| truth(order.is_some_and(Ordering::is_lt)))
}

fn less_or_equal<'b, 'v>(args: Args<'b, 'v>) -> CelResult<'b, 'v> {
    compare("_<=_", args).map(|order| truth(order.is_some_and(Ordering::is_le)))
}

fn greater<'b, 'v>(args: Args<'b, 'v>) -> CelResult<'b, 'v> {
    compare("_>_", args).map(|order| truth(order.is_some_and(Ordering::is_gt)))
}

fn greater_or_equal<'b, 'v>(args: Args<'b, 'v>) -> CelResult<'b, 'v> {
    compare("_>=_", args).map(|order| truth(order.is_some_and(Ordering::is_ge)))
}

fn contained<'b, 'v>(args: Args<'b, 'v>) -> CelResult<'b, 'v> {
    let [value, container] = two(args)?;
    let (value, container) = (value.as_ref(), container.as_ref());
    if let Some(list) = container.downcast_ref::<CelList>() {
        list.inner().iter().try_for_each(|item| pay_equal(item.as_ref(), value))?;
    } else if container.downcast_ref::<CelMap>().is_some() && !is_key(value) {
        // No map has such a key, which is no error as in the library.
        return Ok(truth(false));
    } else if let Some(len) = text_len(value) {
        pay(2 * units(len))?;
    }
    let found = container.as_container().ok_or_else(|| no_overload("@in", &[value, container]))?.contains(value)?;
    Ok(truth(found))
}

/// Numbers, which are all that is calculated with: the library's errors would hold copies of other values.
fn numbers<'b, 'v>(operator: &str, args: Args<'b, 'v>) -> Result<[CowVal<'b, 'v>; 2], ExecutionError> {
    let [a, b] = two(args)?;
    if is_number(a.as_ref()) && is_number(b.as_ref()) {
        Ok([a, b])
    } else {
        Err(no_overload(operator, &[a.as_ref(), b.as_ref()]))
    }
}

fn add<'b, 'v>(args: Args<'b, 'v>) -> CelResult<'b, 'v> {
    let [a, b] = two(args)?;
    if let (Some(a), Some(b)) = (text_len(a.as_ref()), text_len(b.as_ref())) {
        pay(units(a) + units(b))?;
    } else if !(is_number(a.as_ref()) && is_number(b.as_ref())) {
        pay_copy(a.as_ref())?;
        pay_copy(b.as_ref())?;
    }
    // Of values of two kinds only numbers are added. The library adds a map's keys to a list, which is an error in Kubernetes.
    let numbers = is_number(a.as_ref()) && is_number(b.as_ref());
    if a.get_type() != b.get_type() && !numbers {
        return Err(no_overload("_+_", &[a.as_ref(), b.as_ref()]));
    }
    let adder = a.as_adder().ok_or_else(|| no_overload("_+_", &[a.as_ref(), b.as_ref()]))?;
    Ok(CowVal::Owned(adder.add(b.as_ref())?.into_owned()))
}

fn subtract<'b, 'v>(args: Args<'b, 'v>) -> CelResult<'b, 'v> {
    let [a, b] = numbers("_-_", args)?;
    let operand = a.as_subtractor().ok_or_else(|| no_overload("_-_", &[a.as_ref(), b.as_ref()]))?;
    Ok(CowVal::Owned(operand.sub(b.as_ref())?.into_owned()))
}

fn multiply<'b, 'v>(args: Args<'b, 'v>) -> CelResult<'b, 'v> {
    let [a, b] = numbers("_*_", args)?;
    let operand = a.as_multiplier().ok_or_else(|| no_overload("_*_", &[a.as_ref(), b.as_ref()]))?;
    Ok(CowVal::Owned(operand.mul(b.as_ref())?.into_owned()))
}

fn divide<'b, 'v>(args: Args<'b, 'v>) -> CelResult<'b, 'v> {
    let [a, b] = numbers("_/_", args)?;
    let operand = a.as_divider().ok_or_else(|| no_overload("_/_", &[a.as_ref(), b.as_ref()]))?;
    Ok(CowVal::Owned(operand.div(b.as_ref())?.into_owned()))
}

fn modulo<'b, 'v>(args: Args<'b, 'v>) -> CelResult<'b, 'v> {
    let [a, b] = numbers("_%_", args)?;
    let operand = a.as_modder().ok_or_else(|| no_overload("_%_", &[a.as_ref(), b.as_ref()]))?;
    Ok(CowVal::Owned(operand.modulo(b.as_ref())?.into_owned()))
}

/// Passes on an index, charged with what it is to look it up and to say that it is not there.
fn index<'b, 'v>(args: Args<'b, 'v>) -> CelResult<'b, 'v> {
    let value = one(args)?;
    if let Some(number) = value.downcast_ref::<CelDouble>()
        && number.inner().fract() != 0.0
    {
        // The library's error would hold a copy of the list.
        return Err(ExecutionError::function_error("_[_]", "an index is not a whole number"));
    }
    pay(3 * units(text_len(value.as_ref()).unwrap_or(0)))?;
    if value.downcast_ref::<CelList>().is_some() || value.downcast_ref::<CelMap>().is_some() {
        return Err(ExecutionError::function_error("_[_]", "an index is no number or text"));
    }
    Ok(value)
}

/// Passes on a value that becomes part of a list or map: it is copied there, and once more where the list is built up.
fn owned<'b, 'v>(args: Args<'b, 'v>) -> CelResult<'b, 'v> {
    let value = one(args)?;
    pay_copy(value.as_ref())?;
    pay_copy(value.as_ref())?;
    Ok(value)
}

/// Passes on what a comprehension goes over, of which it copies each item.
fn range<'b, 'v>(args: Args<'b, 'v>) -> CelResult<'b, 'v> {
    let value = one(args)?;
    pay_copy(value.as_ref())?;
    Ok(value)
}

fn size<'b, 'v>(args: Args<'b, 'v>) -> CelResult<'b, 'v> {
    let value = one(args)?;
    if let Some(len) = text_len(value.as_ref()) {
        pay(units(len) / 8)?;
    }
    let sizer = value.as_sizer().ok_or_else(|| no_overload("size", &[value.as_ref()]))?;
    Ok(CowVal::owned(sizer.size()))
}

/// A function on two texts.
fn texts<'b, 'v>(
    function: &str,
    args: Args<'b, 'v>,
    cost: fn(usize, usize) -> u64,
    holds: fn(&str, &str) -> Result<bool, ExecutionError>,
) -> CelResult<'b, 'v> {
    let [a, b] = two(args)?;
    let (Some(text), Some(of)) = (a.downcast_ref::<CelString>(), b.downcast_ref::<CelString>()) else {
        return Err(no_overload(function, &[a.as_ref(), b.as_ref()]));
    };
    pay(cost(text.inner().len(), of.inner().len()))?;
    holds(text.inner(), of.inner()).map(truth)
}

fn contains<'b, 'v>(args: Args<'b, 'v>) -> CelResult<'b, 'v> {
    texts("contains", args, |a, b| 2 * (units(a) + units(b)), |text, part| Ok(text.contains(part)))
}

fn starts_with<'b, 'v>(args: Args<'b, 'v>) -> CelResult<'b, 'v> {
    texts("startsWith", args, |a, b| units(a.min(b)) / 8, |text, part| Ok(text.starts_with(part)))
}

fn ends_with<'b, 'v>(args: Args<'b, 'v>) -> CelResult<'b, 'v> {
    texts("endsWith", args, |a, b| units(a.min(b)) / 8, |text, part| Ok(text.ends_with(part)))
}

fn matches<'b, 'v>(args: Args<'b, 'v>) -> CelResult<'b, 'v> {
    texts(
        "matches",
        args,
        |_, _| 0,
        |text, pattern| {
            let missing = || ExecutionError::function_error("matches", "the pattern is not compiled");
            let pattern = Pattern::find(pattern).ok_or_else(missing)?;
            pay(pattern.cost(text.len()))?;
            Ok(pattern.is_match(text))
        },
    )
}

fn type_of<'b, 'v>(args: Args<'b, 'v>) -> CelResult<'b, 'v> {
    Ok(CowVal::owned(CelType::from(one(args)?.get_type())))
}

fn same<'b, 'v>(args: Args<'b, 'v>) -> CelResult<'b, 'v> {
    one(args)
}

fn convert<'b, 'v>(function: &'static str, args: Args<'b, 'v>) -> CelResult<'b, 'v> {
    let [value] = &*args else { return Err(ExecutionError::InvalidArgumentCount { expected: 1, actual: args.len() }) };
    pay(VALUE + 4 * units(text_len(value.as_ref()).unwrap_or(0)))?;
    match LIBRARY.find_overload(function, &args) {
        Some(convert) => convert(args),
        None => Err(no_overload(function, &[value.as_ref()])),
    }
}

fn to_int<'b, 'v>(args: Args<'b, 'v>) -> CelResult<'b, 'v> {
    convert("int", args)
}

/// Converts a text with one of our own; anything else as the library does.
fn read_text<'b, 'v, T: Val + 'v>(function: &'static str, args: Args<'b, 'v>, read: fn(&str) -> Option<T>) -> CelResult<'b, 'v> {
    let Some(text) = args.first().and_then(|value| value.downcast_ref::<CelString>()) else { return convert(function, args) };
    pay(VALUE + 4 * units(text.inner().len()))?;
    let value = read(text.inner()).ok_or_else(|| ExecutionError::function_error(function, "the text is none"))?;
    Ok(CowVal::owned(value))
}

fn to_uint<'b, 'v>(args: Args<'b, 'v>) -> CelResult<'b, 'v> {
    read_text("uint", args, |text| text_to_uint(text).map(CelUInt::from))
}

fn to_double<'b, 'v>(args: Args<'b, 'v>) -> CelResult<'b, 'v> {
    read_text("double", args, |text| text_to_double(text).map(CelDouble::from))
}

fn to_string<'b, 'v>(args: Args<'b, 'v>) -> CelResult<'b, 'v> {
    if let Some(number) = args.first().and_then(|value| value.downcast_ref::<CelDouble>()) {
        pay(VALUE)?;
        return Ok(CowVal::owned(CelString::from(double_to_text(*number.inner()))));
    }
    convert("string", args)
}

fn to_bytes<'b, 'v>(args: Args<'b, 'v>) -> CelResult<'b, 'v> {
    convert("bytes", args)
}

fn to_bool<'b, 'v>(args: Args<'b, 'v>) -> CelResult<'b, 'v> {
    read_text("bool", args, |text| text_to_bool(text).map(CelBool::from))
}

type Function = for<'b, 'v> fn(Args<'b, 'v>) -> CelResult<'b, 'v>;

/// The names of operators, each with that of the function that replaces it where its operands are not small.
pub const OPERATORS: [(&str, &str); 12] = [
    ("_==_", "@equal"),
    ("_!=_", "@not_equal"),
    ("_<_", "@less"),
    ("_<=_", "@less_or_equal"),
    ("_>_", "@greater"),
    ("_>=_", "@greater_or_equal"),
    ("@in", "@contained"),
    ("_+_", "@add"),
    ("_-_", "@subtract"),
    ("_*_", "@multiply"),
    ("_/_", "@divide"),
    ("_%_", "@modulo"),
];
/// The function that charges an index.
pub const INDEX: &str = "@index";
/// The function that charges a value which becomes part of another.
pub const OWNED: &str = "@owned";
/// The function that charges the range of a comprehension.
pub const RANGE: &str = "@range";

const BINARY: [(&str, Function); 13] = [
    ("@equal", equal),
    ("@not_equal", not_equal),
    ("@less", less),
    ("@less_or_equal", less_or_equal),
    ("@greater", greater),
    ("@greater_or_equal", greater_or_equal),
    ("@contained", contained),
    ("@add", add),
    ("@subtract", subtract),
    ("@multiply", multiply),
    ("@divide", divide),
    ("@modulo", modulo),
    ("matches", matches),
];
const UNARY: [(&str, Function); 12] = [
    (INDEX, index),
    (OWNED, owned),
    (RANGE, range),
    ("size", size),
    ("type", type_of),
    ("dyn", same),
    ("int", to_int),
    ("uint", to_uint),
    ("double", to_double),
    ("string", to_string),
    ("bytes", to_bytes),
    ("bool", to_bool),
];
const ON_TEXTS: [(&str, Function); 4] =
    [("contains", contains), ("startsWith", starts_with), ("endsWith", ends_with), ("matches", matches)];

/// An environment in which every function charges for what it does. Nothing in it is there twice, so that nothing fails.
fn env() -> Env {
    let mut env = Env::default();
    for kind in [BOOL_TYPE, BYTES_TYPE, DOUBLE_TYPE, INT_TYPE, LIST_TYPE, MAP_TYPE, NULL_TYPE, STRING_TYPE, TYPE_TYPE, UINT_TYPE]
    {
        let _ = env.add_type(kind);
    }
    for (name, function) in UNARY {
        let _ = env.add_overload(name, name, vec![DYN_TYPE], function);
    }
    for (name, function) in BINARY {
        let _ = env.add_overload(name, name, vec![DYN_TYPE, DYN_TYPE], function);
    }
    let _ = env.add_member_overload("size", "size_of", DYN_TYPE, vec![], size);
    for (name, function) in ON_TEXTS {
        let _ = env.add_member_overload(name, &format!("{name}_of"), DYN_TYPE, vec![DYN_TYPE], function);
    }
    env
}

/// Returns the value of an identifier that stands for a charge.
pub fn charged<'b>() -> CowVal<'b, 'b> {
    truth(true)
}
