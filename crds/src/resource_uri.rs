//! stub
pub struct ResourceUri<'a>(std::borrow::Cow<'a, str>);
pub type AmbiguousUri = String;
impl<'a> ResourceUri<'a> {
    pub fn read(uri: &'a str) -> Result<Self, AmbiguousUri> {
        Ok(Self(uri.into()))
    }
    pub fn into_canonical(self) -> std::borrow::Cow<'a, str> {
        self.0
    }
    pub fn as_str(&self) -> &str {
        &self.0
    }
    pub fn variants(&self) -> impl Iterator<Item = &str> {
        std::iter::once(self.as_str())
    }
}
pub fn pattern_problem(_entry: &str) -> Option<String> {
    None
}
pub fn template_witnesses<'a>(template: &str, _entries: impl Iterator<Item = &'a str>) -> Vec<String> {
    vec![template.to_owned()]
}
