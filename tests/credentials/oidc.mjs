// An OAuth server for tests: oidc-provider, a certified implementation of OpenID Connect and OAuth 2.0, with client credentials and
// resource indicators (RFC 8707). Its access tokens are JWTs for one resource.
//
//     node oidc.mjs PORT SETTINGS.json     settings: clients [{id, secret}], resource, scope, seconds
import { generateKeyPairSync, randomBytes } from 'node:crypto'
import { readFileSync } from 'node:fs'
import { createServer } from 'node:http'
import { createRequire } from 'node:module'
import { pathToFileURL } from 'node:url'

const [port, file] = process.argv.slice(2)
const settings = JSON.parse(readFileSync(file))
// The packages are in the cache folder, not beside this file.
const found = createRequire(`${process.env.NODE_PACKAGES}/`).resolve('oidc-provider')
const { Provider, errors } = await import(pathToFileURL(found))

const { privateKey } = generateKeyPairSync('rsa', { modulusLength: 2048 })
const provider = new Provider(`http://127.0.0.1:${port}`, {
  jwks: { keys: [{ ...privateKey.export({ format: 'jwk' }), alg: 'RS256', use: 'sig', kid: 'oidc' }] },
  cookies: { keys: [randomBytes(16).toString('hex')] },
  clients: settings.clients.map(({ id, secret }) => ({
    client_id: id,
    client_secret: secret,
    grant_types: ['client_credentials'],
    redirect_uris: [],
    response_types: [],
    token_endpoint_auth_method: settings.auth ?? 'client_secret_basic',
  })),
  scopes: settings.scope.split(' '),
  features: {
    devInteractions: { enabled: false },
    clientCredentials: { enabled: true },
    resourceIndicators: {
      enabled: true,
      getResourceServerInfo(_, resource) {
        if (resource !== settings.resource) throw new errors.InvalidTarget()
        return {
          scope: settings.scope,
          audience: resource,
          accessTokenTTL: settings.seconds,
          accessTokenFormat: 'jwt',
          jwt: { sign: { alg: 'RS256' } },
        }
      },
    },
  },
})
createServer(provider.callback()).listen(Number(port), '127.0.0.1')
