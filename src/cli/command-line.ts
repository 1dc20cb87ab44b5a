/** The command line: what can be said. What a command does stands in a file of its name, which is loaded only when the command is run. */

import { Command, InvalidArgumentError, Option } from 'commander'
import { SCOPES } from '../control/operators/scopes.js'
import { Refused, Unreachable } from './client.js'
import { EXIT, userName } from './shared.js'
import { databaseFailure } from '../db/outage.js'
import { ConfigError, Problem } from '../errors.js'
import { SIGNING_ALGORITHMS } from '../credentials/signing-key.js'
import { redactTokens } from '../credentials/token.js'
import { VERSION } from '../package-root.js'

const program = new Command('mecha-keys')
  .description('Issues, lists, rotates, revokes and verifies Mecha keys. Settings come from the environment: see the README.')
  .version(VERSION)
  // A wrong argument may be a key that was pasted into the wrong place.
  .configureOutput({ outputError: (message, write) => write(redactTokens(message)) })
  .exitOverride((error) => {
    throw error
  })

program.command('serve').description('serve the planes that PLANES names').action(lazily(async () => (await import('./serve.js')).runServe))
program
  .command('migrate')
  .description("bring the database's tables up to date, as their owner")
  .option('--with-logins', "also create the planes' logins that DATABASE_URL and RUNTIME_DATABASE_URL name")
  .action(lazily(async () => (await import('./migrate.js')).runMigrate))
program.command('config').description('print the settings in effect, secrets masked').option('--json').action(lazily(async () => (await import('./config.js')).runConfig))
program
  .command('operator-token')
  .description('sign an operator token with the built-in issuer')
  .requiredOption('--org <org>', 'organization')
  .option('--scope <scopes...>', `any of ${SCOPES.join(', ')}; all of them by default`, [...SCOPES])
  .option('--crew <crews...>', 'narrow the token to some crews')
  .option('--subject <name>', 'who it is for, as the audit trail names them', userName())
  .option('--ttl <seconds>', 'how long it is valid', positive, 3600)
  .action(lazily(async () => (await import('./operator-token.js')).runOperatorToken))

const gateway = program.command('gateway').description('gateway credentials, straight in the database')
const ofWhom = () => [
  new Option('--org <org>', 'the organization whose keys the gateway may verify').conflicts('allOrganizations'),
  new Option('--all-organizations', 'a gateway that may verify the keys of every organization'),
]
withOptions(gateway.command('create').requiredOption('--name <name>').option('--json'), ofWhom()).action(lazily(async () => (await import('./gateway.js')).runGatewayCreate))
withOptions(gateway.command('list').option('--json'), ofWhom()).action(lazily(async () => (await import('./gateway.js')).runGatewayList))
withOptions(gateway.command('revoke').argument('<id>').option('--reason <reason>'), ofWhom()).action(lazily(async () => (await import('./gateway.js')).runGatewayRevoke))

const events = program
  .command('events')
  .description('write out the audit trail, oldest first, one line of JSON each')
  .option('--follow', 'wait for more')
  .option('--after <position>', 'leave out what was written out before', position)
  .option('--output <file>', 'a file, gone on with where it ends; standard output otherwise')
  .action(lazily(async () => (await import('./events.js')).runEvents))
events
  .command('expire')
  .description('make the partitions of the coming months, and drop the months that EVENTS_RETENTION no longer keeps, as the owner of the tables')
  .option('--json')
  .action(lazily(async () => (await import('./events.js')).runEventsExpire))

const crew = program.command('crew').description('which organization a crew is reserved for, straight in the database, as its owner')
crew
  .command('reserve')
  .description('from now on nobody else takes a handle in it')
  .argument('<crews...>', 'as in name^crew')
  .requiredOption('--org <org>', 'organization')
  .option('--json')
  .action(lazily(async () => (await import('./crew.js')).runCrewReserve))
crew.command('release').description('take reservations back').argument('<crews...>').action(lazily(async () => (await import('./crew.js')).runCrewRelease))
crew.command('list').description('what is reserved, and for whom').option('--json').action(lazily(async () => (await import('./crew.js')).runCrewList))

program
  .command('organization')
  .description('organizations, straight in the database, as its owner')
  .command('erase')
  .description('revoke and remove all that the database has of one: shows it, and what confirms that')
  .argument('<org>', 'organization')
  .option('--confirm <confirmation>', 'that what was shown is to be erased, for good')
  .option('--json')
  .action(lazily(async () => (await import('./organization.js')).runOrganizationErase))

const afterRestore = program.command('restore').description('after the database was restored from a back-up, as its owner')
afterRestore
  .command('replay')
  .description('end again what was ended since the back-up, and accept the database')
  .argument('<file>', 'what events --output has written')
  .option('--json')
  .action(lazily(async () => (await import('./restore.js')).runRestoreReplay))
afterRestore
  .command('waive')
  .description('accept the database as it is: keys that were revoked since the back-up are accepted again')
  .option('--yes-revocations-may-be-lost', 'that this is known')
  .action(lazily(async () => (await import('./restore.js')).runRestoreWaive))

program
  .command('root-secrets')
  .description('root secrets')
  .command('status')
  .description('which root secrets living keys still need; exits with 1 where one of them is not configured')
  .option('--json')
  .action(lazily(async () => (await import('./root-secrets.js')).runRootSecretsStatus))

const signingKeys = program.command('signing-keys').description('keys that sign exchanged JWTs, straight in the database')
signingKeys.command('list').description('which sign, did and will').option('--json').action(lazily(async () => (await import('./signing-keys.js')).runSigningKeysList))
signingKeys
  .command('rotate')
  .description('make the next one: it is published now and signs in ten minutes')
  .addOption(new Option('--alg <algorithm>', 'what it signs with; as the one before unless said otherwise').choices([...SIGNING_ALGORITHMS]))
  .option('--compromised', 'the others are in wrong hands: it signs at once, and what they signed is refused')
  .option('--json')
  .action(lazily(async () => (await import('./signing-keys.js')).runSigningKeysRotate))

program
  .command('issue')
  .description('issue a key; prints the plaintext, once')
  .argument('<mecha>', 'name^crew')
  .option('--name <name>')
  .option('--scope <scopes...>')
  .option('--expires-in <seconds>', 'life in seconds', positive)
  .option('--idempotency-key <key>', 'a repeat with the same one makes no second key')
  .option('--json')
  .action(lazily(async () => (await import('./issue.js')).runIssue))
program
  .command('list')
  .description('list keys, newest first')
  .option('--mecha <mecha>')
  .addOption(new Option('--status <status>').choices(['active', 'disabled', 'expired', 'revoked']))
  .option('--json')
  .action(lazily(async () => (await import('./list.js')).runList))
program
  .command('revoke')
  .description('revoke a key, for good')
  .argument('<id>', 'key_…')
  .option('--reason <reason>')
  .option('--json')
  .action(lazily(async () => (await import('./revoke.js')).runRevoke))
program
  .command('verify')
  .description('verify the key on standard input, or in MECHA_KEY; exits with 0 if it is valid and 1 if not')
  .option('--mecha <mecha>')
  .option('--scope <scopes...>')
  .option('--json')
  .action(lazily(async () => (await import('./verify.js')).runVerify))
program
  .command('inspect')
  .description('offline: is what stands on standard input, or in MECHA_KEY, a well-formed key, and of which id?')
  .option('--json')
  .action(lazily(async () => (await import('./inspect.js')).runInspect))

await program.parseAsync().catch(fail)

/** An action whose module is loaded when it is called for. */
function lazily<A extends unknown[]>(load: () => Promise<(...args: A) => Promise<void>>) {
  return async (...args: A) => (await load())(...args)
}

function positive(value: string): number {
  if (!/^[1-9]\d{0,9}$/.test(value)) throw new InvalidArgumentError('must be a whole number of seconds, 1 or more')
  return Number(value)
}

function position(value: string): string {
  if (!/^\d{1,18}$/.test(value)) throw new InvalidArgumentError('must be the id of an event')
  return value
}

function withOptions(command: Command, options: Option[]): Command {
  for (const option of options) command.addOption(option)
  return command
}

/** One readable line and an exit code, whatever went wrong. */
function fail(error: Error & { code?: string; exitCode?: number }): void {
  // Commander has already printed its own: help, the version, or what is wrong with the arguments.
  if (error.code?.startsWith('commander.') && !(error instanceof InvalidArgumentError)) {
    process.exitCode = error.exitCode === 0 ? 0 : EXIT.usage
    return
  }
  process.stderr.write(`mecha-keys: ${redactTokens(error.message)}\n`)
  if (error instanceof InvalidArgumentError) process.exitCode = EXIT.usage
  else if (error instanceof ConfigError) process.exitCode = EXIT.config
  else if (error instanceof Unreachable || databaseFailure(error)) process.exitCode = EXIT.unavailable
  else if (error instanceof Refused || error instanceof Problem) process.exitCode = EXIT.no
  else process.exitCode = EXIT.internal
}
