/** The documented back-up and restore, of as many keys as take a while to revoke, to restore and to end again. */

import t from 'tap'
import { backUpAndRestore, skip } from './story.js'

t.test('back up, revoke 1000, restore, replay: what was revoked is accepted at no moment', { skip }, (t) => backUpAndRestore(t, 1000))
