/** What has to be right before traffic is welcome, and what has to be right before the service starts at all. */

import { setTimeout as sleep } from 'node:timers/promises'
import type { ReadinessCheck } from './health.js'

/** Longest wait for the checks at the start. What has not answered by then is told by `/readyz`. */
const AT_START_WITHIN_MS = 5000

export class Checks {
  /** By the name that `/readyz` gives each. */
  readonly ofReadiness: Record<string, ReadinessCheck> = {}
  /** Mistakes in a setting, which waiting does not mend. */
  readonly ofSettings: ReadinessCheck[] = []

  /** The first mistake that is found in the settings, if one is. A check that fails to answer has found none. */
  async findMistake(): Promise<string | undefined> {
    const found = Promise.all(this.ofSettings.map((check) => check().catch(() => undefined))).then((all) => all.find((one) => one !== undefined))
    return Promise.race([found, sleep(AT_START_WITHIN_MS, undefined, { ref: false })])
  }
}
