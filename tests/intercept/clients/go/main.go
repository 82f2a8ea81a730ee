// Net/http; libraries.py says what is printed.
package main

import (
	"encoding/json"
	"io"
	"net/http"
	"os"
	"time"
)

type answer struct {
	Status int    `json:"status,omitempty"`
	Text   string `json:"text,omitempty"`
	Error  string `json:"error,omitempty"`
}

func get(url string) answer {
	client := http.Client{Timeout: 10 * time.Second}
	got, err := client.Get(url)
	if err != nil {
		return answer{Error: err.Error()}
	}
	defer got.Body.Close()
	text, err := io.ReadAll(got.Body)
	if err != nil {
		return answer{Error: err.Error()}
	}
	return answer{Status: got.StatusCode, Text: string(text)}
}

func main() {
	out := json.NewEncoder(os.Stdout)
	for _, url := range os.Args[1:] {
		if err := out.Encode(get(url)); err != nil {
			panic(err)
		}
	}
}
