"""Reads the evidence of `toolweir tools -o json` back from the definitions."""


def texts(definition):
    """Every text of a definition by the place that evidence gives for it: strings by their path, names of properties by the path to them."""
    found = {}

    def walk(value, path):
        if isinstance(value, dict):
            for key, inner in value.items():
                place = f"{path}.{key}" if path else key
                if path.endswith("properties"):
                    found.setdefault(place, set()).add(key)
                walk(inner, place)
        elif isinstance(value, list):
            for number, inner in enumerate(value):
                walk(inner, f"{path}[{number}]")
        elif isinstance(value, bool):
            found.setdefault(path, set()).add("true" if value else "false")
        elif isinstance(value, str):
            found.setdefault(path, set()).add(value)

    walk(definition, "")
    return found


def faults(tool, definition):
    """What is wrong with the evidence of one tool."""
    known = texts(definition)
    for one in tool["evidence"]:
        slices = {text.encode()[one["start"] : one["end"]].decode(errors="replace") for text in known.get(one["in"], ())}
        if not one["text"] or one["text"] not in slices:
            yield f"{tool['name']}: {one}: there stands {slices or 'nothing of that name'}"
    if len({str(one) for one in tool["evidence"]}) < len(tool["evidence"]):
        yield f"{tool['name']}: evidence is repeated: {tool['evidence']}"
    classes = {one["class"] for one in tool["evidence"]}
    if tool["class"] != "Unknown" and tool["class"] not in classes:
        yield f"{tool['name']}: is {tool['class']}, and no evidence speaks for that: {tool['evidence']}"
