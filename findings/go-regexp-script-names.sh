#!/usr/bin/env bash
# Go 1.26.8, package regexp, against Go 1.24.9: classes of Unicode scripts, such as \p{Old_Italic}.
#
# The documentation of regexp/syntax has \p{Greek}, and package unicode names 163 scripts in its map Scripts. Go 1.24 takes
# every one of these names in a pattern. Go 1.26 brings a name into one form before it looks it up (one capital at the
# beginning, no underscores), and the keys of the map are not in that form. So the 46 scripts whose names have an underscore,
# or a capital inside (SignWriting), are refused as an "invalid character class range", in whatever spelling: a pattern that
# was valid ends a program at regexp.MustCompile after an upgrade of Go alone.
#
# Exit code 0 while this is so.
set -euo pipefail
work=$(mktemp -d)
# What Go keeps of modules cannot be written to.
trap 'chmod -R u+w "$work"; rm -rf "$work"' EXIT
cat >"$work/go.mod" <<'END'
module scripts

go 1.24
END
cat >"$work/main.go" <<'END'
package main

import (
	"fmt"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"unicode"
)

func main() {
	var refused []string
	for name := range unicode.Scripts {
		if _, err := regexp.Compile(`\p{` + name + `}`); err != nil {
			refused = append(refused, name)
		}
	}
	slices.Sort(refused)
	fmt.Printf("%s: %d scripts, %d refused\n", runtime.Version(), len(unicode.Scripts), len(refused))
	for _, name := range refused {
		if !strings.Contains(name, "_") {
			fmt.Println("without an underscore:", name)
		}
	}
	for _, name := range []string{"Greek", "Old_Italic", "OldItalic", "Olditalic", "old italic"} {
		_, err := regexp.Compile(`\p{` + name + `}`)
		fmt.Printf("%s: %v\n", name, err)
	}
}
END
cd "$work"
for version in go1.24.9 go1.26.8; do
	GOTOOLCHAIN=$version GOFLAGS=-modcacherw go run .
done | tee said
grep -qx 'go1.24.9: 163 scripts, 0 refused' said
grep -qx 'go1.26.8: 163 scripts, 46 refused' said
[ "$(grep -cx 'without an underscore: SignWriting' said)" = 1 ]
[ "$(grep -c '^Old_Italic: <nil>' said)" = 1 ]
[ "$(grep -cF 'invalid character class range: `\p{Old_Italic}`' said)" = 1 ]
[ "$(grep -c '^Greek: <nil>' said)" = 2 ]
echo "as described"

# go1.24.9: 163 scripts, 0 refused
# Greek: <nil>
# Old_Italic: <nil>
# OldItalic: error parsing regexp: invalid character class range: `\p{OldItalic}`
# ...
# go1.26.8: 163 scripts, 46 refused
# without an underscore: SignWriting
# Greek: <nil>
# Old_Italic: error parsing regexp: invalid character class range: `\p{Old_Italic}`
# OldItalic: error parsing regexp: invalid character class range: `\p{OldItalic}`
# ...
