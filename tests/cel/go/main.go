// What cel-go gives for each expression of a file, in the environment of Kubernetes' admission policies: one line of JSON each.
//
//	go run . ../expressions.json >../cel-go.json
package main

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"log"
	"os"
	"sort"
	"strconv"
	"strings"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/common/types/ref"
	"cel.dev/cel-go/common/types/traits"
	"cel.dev/cel-go/ext"
)

type row struct {
	Expression string         `json:"expression"`
	Arguments  map[string]any `json:"arguments"`
}

func main() {
	log.SetFlags(0)
	text, err := os.ReadFile(os.Args[1])
	if err != nil {
		log.Fatal(err)
	}
	decoder := json.NewDecoder(bytes.NewReader(text))
	decoder.UseNumber()
	var rows []row
	if err := decoder.Decode(&rows); err != nil {
		log.Fatal(err)
	}
	env, err := kubernetes()
	if err != nil {
		log.Fatal(err)
	}
	out := json.NewEncoder(os.Stdout)
	out.SetEscapeHTML(false)
	for _, row := range rows {
		answer := struct {
			Expression string `json:"expression"`
			Value      string `json:"value"`
		}{row.Expression, evaluate(env, row)}
		if err := out.Encode(answer); err != nil {
			log.Fatal(err)
		}
	}
}

// kubernetes is the environment of an admission policy: what k8s.io/apiserver/pkg/cel/environment/base.go takes of cel-go, and
// the variables of a policy of ours.
func kubernetes() (*cel.Env, error) {
	return cel.NewEnv(
		cel.HomogeneousAggregateLiterals(),
		cel.EagerlyValidateDeclarations(true),
		cel.DefaultUTCTimeZone(true),
		cel.CrossTypeNumericComparisons(true),
		cel.OptionalTypes(),
		cel.ASTValidators(
			cel.ValidateDurationLiterals(),
			cel.ValidateTimestampLiterals(),
			cel.ValidateRegexLiterals(),
			cel.ValidateHomogeneousAggregateLiterals(),
		),
		ext.Strings(ext.StringsVersion(2)),
		ext.Sets(),
		ext.TwoVarComprehensions(),
		cel.Variable("args", cel.MapType(cel.StringType, cel.DynType)),
		cel.Variable("tool", cel.StringType),
		cel.Variable("server", cel.StringType),
		cel.Variable("session", cel.StringType),
		cel.Variable("pod", cel.MapType(cel.StringType, cel.StringType)),
	)
}

func evaluate(env *cel.Env, row row) string {
	ast, issues := env.Compile(row.Expression)
	if issues.Err() != nil {
		explain(row, issues.Err())
		return "error"
	}
	program, err := env.Program(ast, cel.EvalOptions(cel.OptOptimize))
	if err != nil {
		explain(row, err)
		return "error"
	}
	arguments := map[string]any{}
	for key, value := range row.Arguments {
		arguments[key] = unstructured(value)
	}
	value, _, err := program.Eval(map[string]any{
		"args":    arguments,
		"tool":    "pay",
		"server":  "bank",
		"session": "s",
		"pod":     map[string]string{"name": "p", "namespace": "agents", "serviceAccount": "default"},
	})
	if err != nil {
		explain(row, err)
		return "error"
	}
	return show(value)
}

func explain(row row, err error) {
	if os.Getenv("EXPLAIN") != "" {
		log.Printf("%s: %v", row.Expression, err)
	}
}

// unstructured is JSON as Kubernetes hands an object to expressions: whole numbers are int where they fit, else double.
func unstructured(value any) any {
	switch value := value.(type) {
	case json.Number:
		if whole, err := strconv.ParseInt(value.String(), 10, 64); err == nil {
			return whole
		}
		number, err := value.Float64()
		if err != nil {
			log.Fatal(err)
		}
		return number
	case []any:
		for i := range value {
			value[i] = unstructured(value[i])
		}
	case map[string]any:
		for key := range value {
			value[key] = unstructured(value[key])
		}
	}
	return value
}

// show is a value as a text from which its type and itself can be told; the test of the engine writes the same.
func show(value ref.Val) string {
	switch value := value.(type) {
	case types.Null:
		return "null"
	case types.Bool:
		return strconv.FormatBool(bool(value))
	case types.Int:
		return strconv.FormatInt(int64(value), 10)
	case types.Uint:
		return strconv.FormatUint(uint64(value), 10) + "u"
	case types.Double:
		return double(float64(value))
	case types.String:
		return quoted(string(value))
	case types.Bytes:
		return "b" + quoted(hex.EncodeToString(value))
	case *types.Type:
		return "type " + value.TypeName()
	case traits.Mapper:
		var entries []string
		for at := value.Iterator(); at.HasNext() == types.True; {
			key := at.Next()
			entries = append(entries, show(key)+": "+show(value.Get(key)))
		}
		sort.Strings(entries)
		return "{" + strings.Join(entries, ", ") + "}"
	case traits.Lister:
		var items []string
		for at := value.Iterator(); at.HasNext() == types.True; {
			items = append(items, show(at.Next()))
		}
		return "[" + strings.Join(items, ", ") + "]"
	default:
		return fmt.Sprintf("%s %v", value.Type().TypeName(), value.Value())
	}
}

// double has always an exponent: 1.5 is 1.5e0.
func double(value float64) string {
	text := strconv.FormatFloat(value, 'e', -1, 64)
	digits, exponent, found := strings.Cut(text, "e")
	if !found {
		return "double " + text
	}
	number, err := strconv.Atoi(exponent)
	if err != nil {
		log.Fatal(err)
	}
	return fmt.Sprintf("%se%d", digits, number)
}

func quoted(text string) string {
	var out bytes.Buffer
	encoder := json.NewEncoder(&out)
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(text); err != nil {
		log.Fatal(err)
	}
	return strings.TrimSuffix(out.String(), "\n")
}
