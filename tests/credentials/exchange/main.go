// A token service: the implementation of RFC 8693 in github.com/zitadel/oidc, a certified library, for tokens that another issuer gave.
// The library parses and answers requests and signs tokens. Here is what it asks its user for: who its clients are, whose tokens are
// exchanged for which, and how long the new ones live.
//
//	exchange PORT SETTINGS.json
package main

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"fmt"
	"log"
	"net/http"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/zitadel/oidc/v3/pkg/client/rp"
	"github.com/zitadel/oidc/v3/pkg/oidc"
	"github.com/zitadel/oidc/v3/pkg/op"
)

type settings struct {
	// Clients and their secrets. With the client "" it also serves those that show no client.
	Clients map[string]string
	// Whose tokens it takes, for which audience, and where the keys are.
	SubjectIssuer, SubjectAudience, SubjectJwks string
	// The audiences and scopes that can be asked for.
	Audiences, Scopes []string
	Seconds           int
}

// store answers the library's questions. It has no users, so the library's other questions do not come up.
type store struct {
	op.Storage
	settings
	key  *rsa.PrivateKey
	keys oidc.KeySet
}

// client is one that exchanges tokens and gets JWTs.
type client struct {
	op.Client
	id string
}

func (c client) GetID() string                       { return c.id }
func (c client) GrantTypes() []oidc.GrantType        { return []oidc.GrantType{oidc.GrantTypeTokenExchange} }
func (c client) AccessTokenType() op.AccessTokenType { return op.AccessTokenTypeJWT }
func (c client) ClockSkew() time.Duration            { return 0 }
func (c client) RestrictAdditionalAccessTokenScopes() func([]string) []string {
	return slices.Clone[[]string]
}

func (s *store) GetClientByClientID(_ context.Context, id string) (op.Client, error) {
	if _, known := s.Clients[id]; !known {
		return nil, errors.New("unknown client")
	}
	return client{id: id}, nil
}

func (s *store) AuthorizeClientIDSecret(_ context.Context, id, secret string) error {
	wanted, known := s.Clients[id]
	if !known || subtle.ConstantTimeCompare([]byte(wanted), []byte(secret)) != 1 {
		return errors.New("unknown client or wrong secret")
	}
	return nil
}

// VerifyExchangeSubjectToken checks the token of a service account as an API server would: signature, issuer, audience, expiry.
func (s *store) VerifyExchangeSubjectToken(ctx context.Context, token string, kind oidc.TokenType) (string, string, map[string]any, error) {
	if kind != oidc.JWTTokenType {
		return "", "", nil, fmt.Errorf("the subject is a %s", kind)
	}
	claims := new(oidc.AccessTokenClaims)
	payload, err := oidc.ParseToken(token, claims)
	if err != nil {
		return "", "", nil, err
	}
	err = errors.Join(
		oidc.CheckIssuer(claims, s.SubjectIssuer),
		oidc.CheckAudience(claims, s.SubjectAudience),
		oidc.CheckExpiration(claims, 0),
		oidc.CheckSignature(ctx, token, payload, claims, []string{"RS256"}, s.keys),
	)
	return token, claims.Subject, claims.Claims, err
}

func (s *store) VerifyExchangeActorToken(context.Context, string, oidc.TokenType) (string, string, map[string]any, error) {
	return "", "", nil, errors.New("nobody acts for another")
}

func (s *store) ValidateTokenExchangeRequest(_ context.Context, request op.TokenExchangeRequest) error {
	if request.GetRequestedTokenType() == "" {
		request.SetRequestedTokenType(oidc.AccessTokenType)
	}
	for _, audience := range request.GetAudience() {
		if !slices.Contains(s.Audiences, audience) {
			return oidc.ErrInvalidTarget().WithDescription("unknown audience")
		}
	}
	for _, scope := range request.GetScopes() {
		if !slices.Contains(s.Scopes, scope) {
			return oidc.ErrInvalidScope().WithDescription("unknown scope")
		}
	}
	return nil
}

func (s *store) CreateTokenExchangeRequest(context.Context, op.TokenExchangeRequest) error {
	return nil
}

func (s *store) GetPrivateClaimsFromTokenExchangeRequest(_ context.Context, request op.TokenExchangeRequest) (map[string]any, error) {
	return map[string]any{"scope": strings.Join(request.GetScopes(), " ")}, nil
}

func (s *store) SetUserinfoFromTokenExchangeRequest(context.Context, *oidc.UserInfo, op.TokenExchangeRequest) error {
	return nil
}

func (s *store) CreateAccessToken(context.Context, op.TokenRequest) (string, time.Time, error) {
	return rand.Text(), time.Now().UTC().Add(time.Duration(s.Seconds) * time.Second), nil
}

func (s *store) SigningKey(context.Context) (op.SigningKey, error) { return key{s.key}, nil }
func (s *store) KeySet(context.Context) ([]op.Key, error) {
	return []op.Key{published{key{s.key}}}, nil
}
func (s *store) SignatureAlgorithms(context.Context) ([]jose.SignatureAlgorithm, error) {
	return []jose.SignatureAlgorithm{jose.RS256}, nil
}
func (s *store) Health(context.Context) error { return nil }

// key signs tokens, and is published.
type key struct{ private *rsa.PrivateKey }

func (k key) ID() string                                  { return "exchange" }
func (k key) Algorithm() jose.SignatureAlgorithm          { return jose.RS256 }
func (k key) SignatureAlgorithm() jose.SignatureAlgorithm { return jose.RS256 }
func (k key) Use() string                                 { return "sig" }
func (k key) Key() any                                    { return k.private }

// published is the key without its private part.
type published struct{ key }

func (k published) Key() any { return &k.private.PublicKey }

func main() {
	port, file := os.Args[1], os.Args[2]
	text, err := os.ReadFile(file)
	if err != nil {
		log.Fatal(err)
	}
	s := &store{}
	if err := json.Unmarshal(text, &s.settings); err != nil {
		log.Fatal(err)
	}
	if s.key, err = rsa.GenerateKey(rand.Reader, 2048); err != nil {
		log.Fatal(err)
	}
	s.keys = rp.NewRemoteKeySet(http.DefaultClient, s.SubjectJwks)
	config := &op.Config{}
	if _, err := rand.Read(config.CryptoKey[:]); err != nil {
		log.Fatal(err)
	}
	provider, err := op.NewProvider(config, s, op.StaticIssuer("http://127.0.0.1:"+port), op.WithAllowInsecure())
	if err != nil {
		log.Fatal(err)
	}
	log.Fatal(http.ListenAndServe("127.0.0.1:"+port, provider))
}
