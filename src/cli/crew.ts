/** `crew`: which organization a crew is reserved for, as the owner of the tables. */

import { InvalidArgumentError } from 'commander'
import { releaseCrew, reserveCrew, type Reservation } from '../control/crews/reserve.js'
import { listCrews } from '../control/crews/store.js'
import { ORGANIZATION, ORGANIZATION_RULE } from '../config.js'
import { CREW, CREW_RULE } from '../credentials/handle.js'
import { asOwner, commandLine } from './with-database.js'
import { EXIT, print } from './shared.js'

export async function runCrewReserve(crews: string[], { org, json }: { org: string; json?: true }): Promise<void> {
  if (!ORGANIZATION.test(org)) throw new InvalidArgumentError(`--org ${ORGANIZATION_RULE}`)
  crews.forEach(checkCrew)
  await asOwner(async (db) => {
    const reservations: Reservation[] = []
    for (const crew of crews) reservations.push(await reserveCrew(db, commandLine(null), crew, org))
    print(json, { crews: reservations }, () => reservations.flatMap((one) => describe(one, org)))
    // What could not be had is said in the output, and by the exit code.
    if (reservations.some((one) => one.org_id !== org)) process.exitCode = EXIT.no
  })
}

export async function runCrewRelease(crews: string[]): Promise<void> {
  crews.forEach(checkCrew)
  await asOwner(async (db) => {
    for (const crew of crews) {
      const released = await releaseCrew(db, commandLine(null), crew)
      process.stdout.write(released ? `released ${crew}, which was reserved for ${released.org_id}\n` : `${crew} is reserved for nobody\n`)
      if (!released) process.exitCode = EXIT.no
    }
  })
}

export async function runCrewList({ json }: { json?: true }): Promise<void> {
  await asOwner(async (db) => {
    const crews = await listCrews(db)
    print(json, { crews }, () => crews.map(({ crew, org_id, reserved_at }) => `${crew}  ${org_id}  since ${reserved_at.toISOString()}`))
  })
}

function describe({ crew, org_id, reserved, others }: Reservation, asked: string): string[] {
  const first = org_id === asked ? `${crew} is reserved for ${org_id}${reserved ? '' : ', and was before'}` : `${crew} is reserved for ${org_id}: release it first`
  return [first, ...others.map(({ org_id: other, mechas }) => `  ${other} had ${mechas} of its Mechas in ${crew} before, which stay its own`)]
}

function checkCrew(crew: string): void {
  if (!CREW.test(crew)) throw new InvalidArgumentError(`<crew> ${CREW_RULE}`)
}
